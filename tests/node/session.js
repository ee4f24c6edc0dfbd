// node-postgres: a table, parameters, a prepared statement, and a transaction in which the database falls asleep.
const assert = require("node:assert");
const readline = require("node:readline");
const { Client } = require("pg");

async function main() {
  const client = new Client({ connectionString: process.argv[2] });
  await client.connect();
  await client.query("CREATE TABLE book (title text PRIMARY KEY, pages integer NOT NULL)");
  await client.query("INSERT INTO book VALUES ($1, $2)", ["Moby-Dick", 635]);
  const prepared = (pages) => client.query({ name: "longer", text: "SELECT title FROM book WHERE pages > $1 ORDER BY title", values: [pages] });
  assert.deepStrictEqual((await prepared(300)).rows, [{ title: "Moby-Dick" }]);

  await client.query("BEGIN");
  await client.query("INSERT INTO book VALUES ($1, $2)", ["Walden", 352]);
  console.log("ready");
  await new Promise((resolve) => readline.createInterface({ input: process.stdin }).once("line", resolve));
  assert.deepStrictEqual((await prepared(300)).rows, [{ title: "Moby-Dick" }, { title: "Walden" }]);
  await client.query("COMMIT");
  assert.strictEqual((await client.query("SELECT sum(pages)::integer AS total FROM book")).rows[0].total, 987);
  await client.end();
  console.log("done");
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
