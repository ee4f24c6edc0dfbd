// Drizzle, on the driver that the first argument names: its migrations, then queries, and a transaction in which the database falls asleep.
const assert = require("node:assert");
const path = require("node:path");
const { eq, gt, sum } = require("drizzle-orm");
const { integer, pgTable, text } = require("drizzle-orm/pg-core");
const { run } = require("./pause.js");

const [kind] = process.argv.splice(2, 1);
const { drizzle } = require(`drizzle-orm/${kind}`);
const { migrate } = require(`drizzle-orm/${kind}/migrator`);
const book = pgTable("book", { title: text("title").primaryKey(), pages: integer("pages").notNull() });

run(async (url, pause) => {
  const quiet = kind === "postgres-js" ? { max: 1, onnotice: () => {} } : { max: 1 };
  const db = drizzle({ connection: { [kind === "postgres-js" ? "url" : "connectionString"]: url, ...quiet } });
  for (let times = 0; times < 2; times += 1) await migrate(db, { migrationsFolder: path.join(__dirname, "migrations") });
  await db.insert(book).values({ title: "Moby-Dick", pages: 635 });
  const longer = (on) => on.select({ title: book.title }).from(book).where(gt(book.pages, 300)).orderBy(book.title).prepare("longer").execute();
  assert.deepStrictEqual(await longer(db), [{ title: "Moby-Dick" }]);
  await db.transaction(async (on) => {
    await on.insert(book).values({ title: "Walden", pages: 352 });
    await pause();
    assert.deepStrictEqual(await longer(on), [{ title: "Moby-Dick" }, { title: "Walden" }]);
  });
  await assert.rejects(db.transaction(async (on) => {
    await on.delete(book).where(eq(book.title, "Walden"));
    on.rollback();
  }));
  assert.deepStrictEqual(await db.select({ total: sum(book.pages) }).from(book), [{ total: "987" }]);
  await db.$client.end();
});
