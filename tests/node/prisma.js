// Prisma 7 through its adapters for Neon's driver (WebSockets; HTTP) and for @prisma/ppg. Arguments: the database's URL, and where SQL over
// HTTP is.
const assert = require("node:assert");
const { PrismaClient, Prisma } = require("./prisma/index.js");

const [url, gateway] = process.argv.slice(2);

function adapter(kind) {
  if (kind === "ppg") {
    const { PrismaPostgresAdapter } = require("@prisma/adapter-ppg");
    const { username, password, pathname } = new URL(url);
    return new PrismaPostgresAdapter({ transportConfig: { endpoint: `http://${gateway}`, username, password, database: pathname.slice(1) } });
  }
  const { neonConfig } = require("@neondatabase/serverless");
  neonConfig.fetchEndpoint = () => `http://${gateway}/sql`;
  neonConfig.wsProxy = () => `${gateway}/v2`;
  neonConfig.useSecureWebSocket = false;
  const { PrismaNeon, PrismaNeonHttp } = require("@prisma/adapter-neon");
  return kind === "neon-http" ? new PrismaNeonHttp(url, {}) : new PrismaNeon({ connectionString: url });
}

const TABLES = [
  `CREATE TABLE IF NOT EXISTS "Author" (id serial PRIMARY KEY, name text NOT NULL UNIQUE)`,
  `CREATE TABLE IF NOT EXISTS "Book" (id serial PRIMARY KEY, title text NOT NULL, pages bigint NOT NULL, price numeric(10, 2) NOT NULL,
    cover bytea, about jsonb, tags text[], added timestamptz(3) NOT NULL DEFAULT now(), "authorId" integer NOT NULL REFERENCES "Author")`,
];

async function use(kind) {
  const prisma = new PrismaClient({ adapter: adapter(kind) });
  for (const table of TABLES) await prisma.$executeRawUnsafe(table);
  const isWhole = kind !== "ppg"; // that adapter writes lists and bytes in forms that PostgreSQL doesn't take, or takes for something else
  const interactive = kind !== "neon-http"; // which takes no transactions, and so no nested writes
  const name = `Melville by ${kind}`;
  const added = new Date("2026-01-02T03:04:05.678Z");
  const cover = new Uint8Array([0, 1, 255]);
  const book = {
    title: "Moby-Dick", pages: 635n, price: new Prisma.Decimal("12.50"), about: { whale: true }, added, ...(isWhole ? { tags: ["sea", 'a "whale"'], cover } : {}),
  };
  const author = await prisma.author.create({ data: { name } });
  const made = await prisma.book.create({ data: { ...book, authorId: author.id } });
  const expected = { tags: [], cover: null, ...book, id: made.id, authorId: author.id };
  assert.deepStrictEqual({ ...made, cover: made.cover && new Uint8Array(made.cover) }, expected);
  const [bytes] = await prisma.$queryRaw`SELECT '\\x0001ff'::bytea AS cover`;
  assert.deepStrictEqual(new Uint8Array(bytes.cover), cover);

  const found = await prisma.author.findUniqueOrThrow({ where: { name }, include: { books: { where: { pages: { gt: 100 } } } } });
  assert.strictEqual(found.books.length, 1);
  assert.strictEqual(found.books[0].added.toISOString(), added.toISOString());
  // The adapter for Neon over HTTP hands errors on unread, the one for @prisma/ppg in a form of its own.
  const isTaken = (error) => error.code === "P2002" || error.kind === "UniqueConstraintViolation" || /duplicate key/.test(error.message);
  await assert.rejects(prisma.author.create({ data: { name } }), isTaken);
  assert.deepStrictEqual(await prisma.book.aggregate({ _sum: { pages: true }, where: { authorId: author.id } }), { _sum: { pages: 635n } });
  assert.deepStrictEqual(await prisma.$queryRaw`SELECT ${1}::integer AS one, ${"x"} AS x`, [{ one: 1, x: "x" }]);

  if (interactive) {
    await prisma.author.create({ data: { name: `Thoreau by ${kind}`, books: { create: [{ title: "Walden", pages: 352, price: 9 }] } } });
    await prisma.$transaction(async (tx) => {
      await tx.book.updateMany({ where: { authorId: author.id }, data: { pages: { increment: 1 } } });
      assert.strictEqual((await tx.book.findFirstOrThrow({ where: { authorId: author.id } })).pages, 636n);
    }, { isolationLevel: "Serializable" });
    await assert.rejects(
      prisma.$transaction(async (tx) => {
        await tx.book.deleteMany();
        throw new Error("no");
      }),
      /^Error: no$/,
    );
    assert.strictEqual(await prisma.book.count({ where: { author: { name: { endsWith: `by ${kind}` } } } }), 2);
    const [count] = await prisma.$transaction([prisma.book.count({ where: { authorId: author.id } }), prisma.author.findMany()]);
    assert.strictEqual(count, 1);
  }
  await prisma.$disconnect();
}

async function main() {
  for (const kind of ["neon", "neon-http", "ppg"]) await use(kind);
  console.log("done");
}

main()
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
