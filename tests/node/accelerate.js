// Prisma 7 with an accelerateUrl and @prisma/extension-accelerate, both as they are published. Arguments: the prisma+postgres:// URL; and
// "elsewhere" when its host isn't localhost to Prisma: then all goes over HTTPS, and the extension must be told where to purge.
const assert = require("node:assert");
const { PrismaClient, Prisma } = require("./prisma/index.js");
const { withAccelerate } = require("@prisma/extension-accelerate");

const [accelerateUrl, where] = process.argv.slice(2);
const { host } = new URL(accelerateUrl);
const there = (address, options) => fetch(String(address).replace("accelerate.prisma-data.net", host), options);
const extension = where === "elsewhere" ? withAccelerate({ fetch: there }) : withAccelerate();

const TABLES = [
  `CREATE TABLE "Author" (id serial PRIMARY KEY, name text NOT NULL UNIQUE)`,
  `CREATE TABLE "Book" (id serial PRIMARY KEY, title text NOT NULL, pages bigint NOT NULL, price numeric(10, 2) NOT NULL,
    cover bytea, about jsonb, tags text[], added timestamptz(3) NOT NULL DEFAULT now(), "authorId" integer NOT NULL REFERENCES "Author")`,
];

async function values(prisma) {
  const added = new Date("2026-01-02T03:04:05.678Z");
  const cover = new Uint8Array([0, 1, 255]);
  const book = { title: "Moby-Dick", pages: 635n, price: new Prisma.Decimal("12.50"), about: { whale: true, "é": [1, null] }, added, tags: ["sea", 'a "whale"', "back\\slash"], cover };
  const author = await prisma.author.create({ data: { name: "Melville" } });
  const made = await prisma.book.create({ data: { ...book, authorId: author.id } });
  assert.deepStrictEqual({ ...made, cover: new Uint8Array(made.cover) }, { id: made.id, authorId: author.id, ...book });
  const found = await prisma.author.findUniqueOrThrow({ where: { name: "Melville" }, include: { books: { where: { pages: { gt: 100 } } } } });
  assert.deepStrictEqual(found.books.map((one) => ({ ...one, cover: new Uint8Array(one.cover) })), [{ id: made.id, authorId: author.id, ...book }]);
  assert.deepStrictEqual(await prisma.book.findFirst({ where: { added, cover, price: "12.5", tags: { has: "sea" } }, select: { title: true } }), { title: "Moby-Dick" });
  assert.deepStrictEqual(await prisma.book.aggregate({ _sum: { pages: true }, _avg: { price: true }, _count: true }), {
    _sum: { pages: 635n }, _avg: { price: new Prisma.Decimal("12.5") }, _count: 1,
  });
  const raw = await prisma.$queryRaw`SELECT ${1}::integer AS one, ${"x"} AS x, ${7n}::bigint AS big, ${added}::timestamptz AS at, ${cover}::bytea AS bytes,
    '{"a": [1]}'::jsonb AS j, ARRAY[1, 2] AS l, 1.5::float8 AS f, 2.50::numeric AS n, NULL AS nothing, true AS yes, DATE '2026-03-04' AS day`;
  assert.deepStrictEqual({ ...raw[0], bytes: new Uint8Array(raw[0].bytes) }, {
    one: 1, x: "x", big: 7n, at: added, bytes: cover, j: { a: [1] }, l: [1, 2], f: 1.5, n: new Prisma.Decimal("2.5"), nothing: null, yes: true, day: new Date("2026-03-04"),
  });
  assert.strictEqual(await prisma.$executeRaw`UPDATE "Book" SET pages = pages + ${1n} WHERE title = ${"Moby-Dick"}`, 1);
  return author;
}

async function errors(prisma) {
  const refused = (code, meta) => (error) => {
    assert.ok(error instanceof Prisma.PrismaClientKnownRequestError, String(error));
    assert.strictEqual(error.code, code, error.message);
    if (meta) meta(error.meta);
    return true;
  };
  await assert.rejects(prisma.author.create({ data: { name: "Melville" } }), refused("P2002", (meta) => {
    assert.strictEqual(meta.driverAdapterError.cause.constraint.index, "Author_name_key");
    assert.strictEqual(meta.driverAdapterError.cause.originalCode, "23505");
  }));
  await assert.rejects(prisma.author.findUniqueOrThrow({ where: { id: -1 } }), refused("P2025"));
  await assert.rejects(prisma.author.update({ where: { id: -1 }, data: { name: "x" } }), refused("P2025"));
  await assert.rejects(prisma.book.create({ data: { title: "x", pages: 1, price: 1, authorId: -1 } }), refused("P2003"));
  await assert.rejects(prisma.$queryRaw`SELECT 1 / 0`, refused("P2010", (meta) => assert.strictEqual(meta.driverAdapterError.cause.originalCode, "22012")));
  await assert.rejects(prisma.$queryRaw`SELECT * FROM nowhere`, refused("P2010"));
  await assert.rejects(prisma.$queryRaw`SELECT interval '1 day'`, refused("P2010"));
}

async function shapes(prisma, author) {
  // Nested writes, many rows, pages with cursors, distinct ones, relations that are counted, connected, and taken away.
  const many = Array.from({ length: 1200 }, (_, n) => ({ title: `Volume ${n % 600}`, pages: n, price: n / 4, authorId: author.id }));
  assert.deepStrictEqual(await prisma.book.createMany({ data: many }), { count: 1200 });
  const thoreau = await prisma.author.create({
    data: { name: "Thoreau", books: { create: [{ title: "Walden", pages: 352, price: 9 }, { title: "Walking", pages: 60, price: 3 }] } },
    include: { books: { orderBy: { title: "asc" } }, _count: { select: { books: true } } },
  });
  assert.deepStrictEqual([thoreau.books.map((one) => one.title), thoreau._count], [["Walden", "Walking"], { books: 2 }]);
  const page = await prisma.book.findMany({ where: { authorId: author.id }, orderBy: { pages: "desc" }, skip: 1, take: 3, cursor: { id: (await prisma.book.findFirstOrThrow({ where: { pages: 1000n } })).id } });
  assert.deepStrictEqual(page.map((one) => one.pages), [999n, 998n, 997n]);
  assert.strictEqual((await prisma.book.findMany({ distinct: ["title"], where: { title: { startsWith: "Volume" } } })).length, 600);
  assert.strictEqual((await prisma.book.findMany({ where: { id: { in: Array.from({ length: 5000 }, (_, n) => n) } } })).length, 1203);
  const last = await prisma.author.findMany({ include: { books: { take: -2, orderBy: { id: "asc" } } }, orderBy: { name: "asc" } });
  assert.deepStrictEqual(last.map((one) => one.books.length), [2, 2]);
  const moved = await prisma.book.update({ where: { id: thoreau.books[1].id }, data: { author: { connect: { name: "Melville" } } }, include: { author: true } });
  assert.strictEqual(moved.author.name, "Melville");
  await assert.rejects(prisma.book.update({ where: { id: moved.id }, data: { author: { connect: { name: "Nobody" } } } }), (error) => error.code === "P2025");
  const upserted = await prisma.author.upsert({ where: { name: "Thoreau" }, update: { name: "Henry" }, create: { name: "no" } });
  assert.deepStrictEqual(upserted, { id: thoreau.id, name: "Henry" });
  const groups = await prisma.book.groupBy({ by: ["authorId"], _count: { _all: true }, _max: { pages: true }, orderBy: { authorId: "asc" } });
  assert.deepStrictEqual(groups.map((one) => [one._count._all, one._max.pages]), [[1202, 1199n], [1, 352n]]);
  assert.deepStrictEqual(await prisma.book.deleteMany({ where: { title: { startsWith: "Volume" } } }), { count: 1200 });
  const both = await Promise.all([prisma.author.findUnique({ where: { id: author.id } }), prisma.author.findUnique({ where: { id: thoreau.id } }), prisma.author.findUnique({ where: { id: -1 } })]);
  assert.deepStrictEqual(both.map((one) => one && one.name), ["Melville", "Henry", null]);
}

async function transactions(prisma) {
  await prisma.$transaction(
    async (tx) => {
      await tx.book.updateMany({ data: { pages: { increment: 1 } } });
      const [level] = await tx.$queryRaw`SHOW transaction_isolation`;
      assert.strictEqual(level.transaction_isolation, "serializable");
    },
    { isolationLevel: "Serializable" },
  );
  const count = await prisma.book.count();
  await assert.rejects(
    prisma.$transaction(async (tx) => {
      await tx.book.deleteMany();
      assert.strictEqual(await tx.book.count(), 0);
      throw new Error("no");
    }),
    /^Error: no$/,
  );
  assert.strictEqual(await prisma.book.count(), count);
  const [counted, authors] = await prisma.$transaction([prisma.book.count(), prisma.author.findMany()]);
  assert.deepStrictEqual([counted, authors.length], [count, 2]);
  await assert.rejects(prisma.$transaction([prisma.book.deleteMany(), prisma.author.create({ data: { name: "Melville" } })]), (error) => error.code === "P2002");
  assert.strictEqual(await prisma.book.count(), count);
  // One that takes too long is rolled back, and says so.
  await assert.rejects(
    prisma.$transaction(
      async (tx) => {
        await tx.book.deleteMany();
        await tx.$queryRaw`SELECT 1 FROM (SELECT pg_sleep(60)) AS s`;
      },
      { timeout: 1000 },
    ),
    (error) => error.code === "P2028" && /expired transaction/.test(error.message),
  );
  assert.strictEqual(await prisma.book.count(), count);
  // What failed in it can't be committed by not looking.
  await assert.rejects(
    prisma.$transaction(async (tx) => {
      await tx.author.create({ data: { name: "Poe" } });
      await tx.$executeRaw`INSERT INTO "Author" (name) VALUES ('Melville')`.catch(() => {});
    }),
    (error) => error.code === "P2028",
  );
  assert.strictEqual(await prisma.author.count({ where: { name: "Poe" } }), 0);
}

async function cache(prisma) {
  const cacheStrategy = { ttl: 600, swr: 600, tags: ["books", "home"] };
  const ask = (more) => prisma.book.count({ cacheStrategy, ...more }).withAccelerateInfo();
  const first = await ask();
  assert.strictEqual(first.info.cacheStatus, "miss");
  assert.match(first.info.requestId, /^[0-9a-f]{16}-torpor$/);
  assert.strictEqual(first.info.region, "torpor");
  assert.match(first.info.signature, /^[0-9a-f]{64}$/);
  const second = await ask();
  assert.strictEqual(second.info.cacheStatus, "ttl");
  assert.strictEqual(second.info.signature, first.info.signature);
  assert.ok(Math.abs(second.info.lastModified - Date.now()) < 600_000);
  await prisma.author.create({ data: { name: "Whitman", books: { create: { title: "Leaves", pages: 95, price: 1 } } } });
  assert.deepStrictEqual([(await ask()).data, (await ask()).info.cacheStatus], [first.data, "ttl"]);
  assert.strictEqual((await prisma.book.count({ cacheStrategy: { ttl: 600, tags: ["books"] }, where: { pages: 95 } }).withAccelerateInfo()).info.cacheStatus, "miss");
  assert.strictEqual((await prisma.book.count().withAccelerateInfo()).info.cacheStatus, "none");

  await prisma.$accelerate.invalidate({ tags: ["others"] });
  assert.strictEqual((await ask()).info.cacheStatus, "ttl");
  await prisma.$accelerate.invalidate({ tags: ["home"] });
  const renewed = await ask();
  assert.deepStrictEqual([renewed.data, renewed.info.cacheStatus], [first.data + 1, "miss"]);
  assert.strictEqual((await ask()).info.cacheStatus, "ttl");
  assert.match((await prisma.$accelerate.invalidateAll()).requestId, /-torpor$/);
  assert.strictEqual((await ask()).info.cacheStatus, "miss");
  await assert.rejects(prisma.$accelerate.invalidate({ tags: ["no tag"] }), /400/);

  // A plan of several queries, and one that changes rows.
  const withBooks = () => prisma.author.findMany({ include: { books: true }, cacheStrategy }).withAccelerateInfo();
  const cold = await withBooks();
  const warm = await withBooks();
  assert.deepStrictEqual([cold.info.cacheStatus, warm.info.cacheStatus], ["miss", "ttl"]);
  assert.deepStrictEqual(warm.data, cold.data);
}

async function logs() {
  const prisma = new PrismaClient({ accelerateUrl, log: [{ emit: "event", level: "query" }] });
  const heard = [];
  prisma.$on("query", (event) => heard.push(event));
  await prisma.author.findFirst({ where: { name: "Melville" } });
  assert.strictEqual(heard.length, 1);
  assert.match(heard[0].query, /^SELECT .* FROM "public"."Author" WHERE/);
  assert.ok(JSON.parse(heard[0].params).includes("Melville") && heard[0].duration >= 0 && heard[0].timestamp instanceof Date);
}

async function strangers() {
  const wrong = accelerateUrl.replace(/api_key=.*/, `api_key=${Buffer.from("postgresql://nobody:wrong@localhost/nowhere").toString("base64url")}`);
  for (const url of [accelerateUrl.replace(/api_key=.*/, "api_key=eyJhbGciOiJIUzI1NiJ9.e30.x"), wrong]) {
    const stranger = new PrismaClient({ accelerateUrl: url }).$extends(withAccelerate());
    await assert.rejects(stranger.author.count(), (error) => ["P6002", "P1003"].includes(error.code));
    await assert.rejects(stranger.$accelerate.invalidateAll());
  }
}

async function main() {
  const prisma = new PrismaClient({ accelerateUrl, transactionOptions: { maxWait: 60_000, timeout: 60_000 } }).$extends(extension);
  for (const table of TABLES) await prisma.$executeRawUnsafe(table);
  if (where !== "elsewhere") {
    const author = await values(prisma);
    await errors(prisma);
    await shapes(prisma, author);
    await transactions(prisma);
    await logs();
    await strangers();
  }
  await cache(prisma);
  await prisma.$disconnect();
  console.log("done");
}

main()
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
