// Drizzle on Neon's serverless driver: migrations and queries over HTTP, transactions over WebSockets. Arguments: the database's URL, and where
// SQL over HTTP is.
const assert = require("node:assert");
const path = require("node:path");
const { neon, neonConfig, Pool } = require("@neondatabase/serverless");
const { gt, sum } = require("drizzle-orm");
const { integer, pgTable, text } = require("drizzle-orm/pg-core");

const [url, gateway] = process.argv.slice(2);
neonConfig.fetchEndpoint = () => `http://${gateway}/sql`;
neonConfig.wsProxy = () => `${gateway}/v2`;
neonConfig.useSecureWebSocket = false;
const book = pgTable("book", { title: text("title").primaryKey(), pages: integer("pages").notNull() });

async function main() {
  const http = require("drizzle-orm/neon-http").drizzle({ client: neon(url) });
  await require("drizzle-orm/neon-http/migrator").migrate(http, { migrationsFolder: path.join(__dirname, "migrations") });
  await http.batch([http.insert(book).values({ title: "Moby-Dick", pages: 635 }), http.insert(book).values({ title: "Short", pages: 10 })]);
  const longer = (on) => on.select({ title: book.title }).from(book).where(gt(book.pages, 300)).orderBy(book.title);
  assert.deepStrictEqual(await longer(http), [{ title: "Moby-Dick" }]);

  const pool = new Pool({ connectionString: url });
  const sockets = require("drizzle-orm/neon-serverless").drizzle({ client: pool });
  await sockets.transaction(async (on) => {
    await on.insert(book).values({ title: "Walden", pages: 352 });
    assert.deepStrictEqual(await longer(on), [{ title: "Moby-Dick" }, { title: "Walden" }]);
  });
  assert.deepStrictEqual(await http.select({ total: sum(book.pages) }).from(book), [{ total: "997" }]);
  await pool.end();
  console.log("done");
}

main()
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
