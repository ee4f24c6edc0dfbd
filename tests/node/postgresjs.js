// postgres.js: a table, parameters, statements that it prepares itself, and a transaction in which the database falls asleep.
const assert = require("node:assert");
const postgres = require("postgres");
const { run } = require("./pause.js");

run(async (url, pause) => {
  const sql = postgres(url, { max: 1, onnotice: () => {} });
  await sql`CREATE TABLE book (title text PRIMARY KEY, pages integer NOT NULL)`;
  await sql`INSERT INTO book ${sql({ title: "Moby-Dick", pages: 635 })}`;
  const longer = (on, pages) => on`SELECT title FROM book WHERE pages > ${pages} ORDER BY title`;
  assert.deepStrictEqual([...(await longer(sql, 300))], [{ title: "Moby-Dick" }]);
  await sql.begin(async (on) => {
    await on`INSERT INTO book VALUES (${"Walden"}, ${352})`;
    await pause();
    assert.deepStrictEqual([...(await longer(on, 300))], [{ title: "Moby-Dick" }, { title: "Walden" }]);
  });
  await assert.rejects(sql`INSERT INTO book VALUES (${"Walden"}, ${1})`, { code: "23505" });
  const pages = [];
  for await (const rows of sql`SELECT pages FROM book ORDER BY pages`.cursor(1)) pages.push(rows[0].pages);
  assert.deepStrictEqual(pages, [352, 635]);
  assert.deepStrictEqual([...(await Promise.all([1, 2, 3].map((n) => sql`SELECT ${n}::integer AS n`)))].map((rows) => rows[0].n), [1, 2, 3]);
  await sql.end();
});
