// @neondatabase/serverless over HTTP and over a WebSocket, as its users write it. Arguments: the database's URL, and where SQL over HTTP is.
const assert = require("node:assert");
const { neon, neonConfig, Client, Pool, NeonDbError } = require("@neondatabase/serverless");

const [url, gateway] = process.argv.slice(2);
neonConfig.fetchEndpoint = () => `http://${gateway}/sql`;
neonConfig.wsProxy = () => `${gateway}/v2`;
neonConfig.useSecureWebSocket = false;

async function overHttp() {
  const sql = neon(url);
  await sql`CREATE TABLE book (title text PRIMARY KEY, pages integer NOT NULL, tags text[], about jsonb, added timestamptz)`;
  const added = new Date("2026-01-02T03:04:05.678Z");
  await sql`INSERT INTO book VALUES (${"Moby-Dick"}, ${635}, ${["sea", 'a "whale"', "back\\slash"]}, ${{ by: "Melville" }}, ${added})`;
  const [book] = await sql`SELECT * FROM book WHERE pages > ${300}`;
  assert.deepStrictEqual(book, { title: "Moby-Dick", pages: 635, tags: ["sea", 'a "whale"', "back\\slash"], about: { by: "Melville" }, added });

  const full = await sql.query("SELECT title, pages FROM book WHERE title = $1", ["Moby-Dick"], { fullResults: true, arrayMode: true });
  assert.deepStrictEqual(full.rows, [["Moby-Dick", 635]]);
  assert.strictEqual(full.command, "SELECT");
  assert.strictEqual(full.rowCount, 1);
  assert.strictEqual(full.rowAsArray, true);
  assert.deepStrictEqual(full.fields.map((field) => [field.name, field.dataTypeID]), [["title", 25], ["pages", 23]]);
  assert.strictEqual((await sql.query("DELETE FROM book WHERE false", [], { fullResults: true })).rowCount, 0);

  await assert.rejects(sql`INSERT INTO book VALUES (${"Moby-Dick"}, 1)`, (error) => {
    assert.ok(error instanceof NeonDbError);
    assert.strictEqual(error.code, "23505");
    assert.strictEqual(error.constraint, "book_pkey");
    assert.strictEqual(error.table, "book");
    assert.strictEqual(error.schema, "public");
    assert.strictEqual(error.severity, "ERROR");
    assert.match(error.detail, /already exists/);
    return true;
  });
  await assert.rejects(neon(url.replace(/:[^:@/]+@/, ":wrong@"))`SELECT 1`, (error) => error.code === "28P01");
  await assert.rejects(neon(url.replace(/\/[^/]+$/, "/nowhere"))`SELECT 1`, (error) => error.code === "3D000");

  // A batch is one transaction, with all that can be said of it.
  const [level, count] = await sql.transaction(
    [sql`SELECT current_setting('transaction_isolation') AS is`, sql`SELECT count(*)::integer AS n FROM book`],
    { isolationLevel: "Serializable", readOnly: true, deferrable: true },
  );
  assert.deepStrictEqual([level, count], [[{ is: "serializable" }], [{ n: 1 }]]);
  await assert.rejects(sql.transaction([sql`INSERT INTO book VALUES ('Walden', 352)`, sql`SELECT 1 / 0`]), (error) => error.code === "22012");
  await assert.rejects(sql.transaction([sql`DELETE FROM book`], { readOnly: true }), (error) => error.code === "25006");
  assert.deepStrictEqual(await sql`SELECT count(*)::integer AS n FROM book`, [{ n: 1 }]);

  // Nothing of one request's session is left for the next one.
  await sql`SET search_path = pg_catalog`;
  await sql`CREATE TEMPORARY TABLE scratch (a integer)`.catch(() => {});
  assert.deepStrictEqual(await sql`SELECT current_setting('search_path') AS path, to_regclass('scratch') AS scratch`, [
    { path: '"$user", public', scratch: null },
  ]);

  const many = await sql`SELECT n, repeat('x', 100) AS filling FROM generate_series(1, 20000) AS n`;
  assert.strictEqual(many.length, 20000);
  assert.strictEqual(many[19999].n, 20000);
}

// The pool's cache, by headers: added by the fetch function, or by fetchOptions, whose headers replace the driver's own.
async function cached() {
  const said = [];
  neonConfig.fetchFunction = async (address, options) => {
    const answer = await fetch(address, options);
    said.push(answer.headers.get("torpor-cache"));
    return answer;
  };
  const sql = neon(url);
  const headers = {
    "Neon-Connection-String": url, "Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true",
    "cache-control": "max-age=600, stale-while-revalidate=600", "cache-tags": "books",
  };
  for (const pages of [300, 300, 700]) await sql.query("SELECT title FROM book WHERE pages > $1", [pages], { fetchOptions: { headers } });
  await sql`SELECT title FROM book WHERE pages > ${300}`;
  const always = neonConfig.fetchFunction;
  neonConfig.fetchFunction = (address, options) => always(address, { ...options, headers: { ...options.headers, "cache-control": "max-age=600" } });
  assert.deepStrictEqual([await sql`SELECT pages FROM book`, await sql`SELECT pages FROM book`], [[{ pages: 635 }], [{ pages: 635 }]]);
  // Without any header: the words stand in the statement, and the connection is the pool's.
  neonConfig.fetchFunction = always;
  const pooled = neon(`${url}@auto`);
  for (let turn = 0; turn < 2; turn++) await pooled.query("/* ttl=600 status */ SELECT max(pages) FROM book");
  neonConfig.fetchFunction = undefined;
  assert.deepStrictEqual(said, ["miss", "hit", "miss", null, "miss", "hit", "miss", "hit"]);
}

async function overWebSocket() {
  const pool = new Pool({ connectionString: url, max: 3 });
  const client = await pool.connect();
  await client.query("BEGIN");
  await client.query("INSERT INTO book VALUES ($1, $2)", ["Walden", 352]);
  const prepared = { name: "longer", text: "SELECT title FROM book WHERE pages > $1 ORDER BY title", values: [300] };
  assert.deepStrictEqual((await client.query(prepared)).rows, [{ title: "Moby-Dick" }, { title: "Walden" }]);
  await client.query("ROLLBACK");
  assert.deepStrictEqual((await client.query(prepared)).rows, [{ title: "Moby-Dick" }]);
  client.release();
  const sums = await Promise.all([1, 2, 3, 4, 5].map((n) => pool.query("SELECT $1::integer * 2 AS twice", [n])));
  assert.deepStrictEqual(sums.map((sum) => sum.rows[0].twice), [2, 4, 6, 8, 10]);
  const big = await pool.query("SELECT n, repeat('x', 100) AS filling FROM generate_series(1, 20000) AS n");
  assert.strictEqual(big.rows.length, 20000);
  await pool.end();

  const wrong = new Client(url.replace(/:[^:@/]+@/, ":wrong@"));
  wrong.on("error", () => {});
  await assert.rejects(wrong.connect().then(() => wrong.query("SELECT 1")), (error) => error.code === "28P01");

  neonConfig.pipelineConnect = false;
  const patient = new Client(url);
  await patient.connect();
  await assert.rejects(patient.query("SELECT * FROM nowhere"), (error) => error.code === "42P01");
  await patient.query("LISTEN news");
  const heard = new Promise((resolve) => patient.on("notification", resolve));
  await patient.query("NOTIFY news, 'hello'");
  assert.strictEqual((await heard).payload, "hello");
  await patient.end();
}

overHttp()
  .then(cached)
  .then(overWebSocket)
  .then(() => console.log("done"))
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
