// Prisma 7 by its adapter for node-postgres: nested writes, errors, and a transaction in which the database falls asleep.
const assert = require("node:assert");
const { PrismaPg } = require("@prisma/adapter-pg");
const { PrismaClient, Prisma } = require("./prisma/index.js");
const { run } = require("./pause.js");

const TABLES = [
  `CREATE TABLE "Author" (id serial PRIMARY KEY, name text NOT NULL UNIQUE)`,
  `CREATE TABLE "Book" (id serial PRIMARY KEY, title text NOT NULL, pages bigint NOT NULL, price numeric(10, 2) NOT NULL, cover bytea,
    about jsonb, tags text[], added timestamptz(3) NOT NULL DEFAULT now(), "authorId" integer NOT NULL REFERENCES "Author")`,
];

run(async (url, pause) => {
  const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: url, max: 1 }) });
  for (const table of TABLES) await prisma.$executeRawUnsafe(table);
  const book = { title: "Moby-Dick", pages: 635n, price: new Prisma.Decimal("12.50"), tags: ["sea"], cover: new Uint8Array([0, 255]), about: { whale: true } };
  const author = await prisma.author.create({ data: { name: "Melville", books: { create: [book] } }, include: { books: true } });
  assert.deepStrictEqual({ ...author.books[0], cover: new Uint8Array(author.books[0].cover) }, { ...author.books[0], ...book });
  const long = { where: { pages: { gt: 300 } }, orderBy: { title: "asc" }, select: { title: true } };
  await prisma.$transaction(
    async (tx) => {
      await tx.author.create({ data: { name: "Thoreau", books: { create: [{ title: "Walden", pages: 352, price: 9 }] } } });
      await pause();
      assert.deepStrictEqual(await tx.book.findMany(long), [{ title: "Moby-Dick" }, { title: "Walden" }]);
    },
    { timeout: 600_000 },
  );
  await assert.rejects(prisma.author.create({ data: { name: "Thoreau" } }), { code: "P2002" });
  assert.deepStrictEqual(await prisma.book.aggregate({ _sum: { pages: true } }), { _sum: { pages: 987n } });
  const [count, names] = await prisma.$transaction([prisma.book.count(), prisma.$queryRaw`SELECT name FROM "Author" WHERE id > ${0} ORDER BY name`]);
  assert.deepStrictEqual([count, names], [2, [{ name: "Melville" }, { name: "Thoreau" }]]);
  await prisma.$disconnect();
});
