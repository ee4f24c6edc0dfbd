// @prisma/ppg over HTTP and over a WebSocket. Arguments: the database's URL, and where SQL over HTTP is.
const assert = require("node:assert");
const { client, prismaPostgres, defaultClientConfig, DatabaseError, byteArrayParameter, BINARY } = require("@prisma/ppg");

const [url, gateway] = process.argv.slice(2);
const { username, password, pathname } = new URL(url);
const transportConfig = { endpoint: `http://${gateway}`, username, password, database: pathname.slice(1) };
const config = (more) => ({ ...defaultClientConfig(url), transportConfig: { ...transportConfig, ...more } });

async function main() {
  const ppg = prismaPostgres(config());
  assert.strictEqual(await ppg.exec("CREATE TABLE letter (id bigint PRIMARY KEY, body text, seal bytea, sent boolean)"), 0);
  const long = "é".repeat(5000);
  assert.strictEqual(await ppg.sql.exec`INSERT INTO letter VALUES (${1n}, ${long}, NULL, ${true}), (${2n}, ${null}, ${"\\x0001ff"}, ${false})`, 2);
  const letters = await ppg.sql`SELECT id, body, sent FROM letter ORDER BY id`.collect();
  assert.deepStrictEqual(letters, [{ id: 1n, body: long, sent: true }, { id: 2n, body: null, sent: false }]);
  await assert.rejects(ppg.sql`SELECT * FROM nowhere`.collect(), (error) => error instanceof DatabaseError && error.code === "42P01");
  await assert.rejects(ppg.exec("INSERT INTO letter VALUES (1)"), (error) => error.details.constraint === "letter_pkey");
  await assert.rejects(prismaPostgres(config({ password: "wrong" })).exec("SELECT 1"), (error) => error.code === "28P01");
  let rows = 0;
  for await (const row of ppg.sql`SELECT n FROM generate_series(1, 20000) AS n`) rows = row.n;
  assert.strictEqual(rows, 20000);

  const low = client(config());
  const seal = byteArrayParameter(new Uint8Array(5000).fill(7), BINARY);
  await assert.doesNotReject(low.query("SELECT 1"));
  const raw = await client({ ...config(), serializers: [{ supports: (value) => value === seal, serialize: (value) => value }] }).query(
    "SELECT length($1::bytea) AS long",
    seal,
  );
  assert.deepStrictEqual((await raw.rows.collect())[0].values, [5000]);

  // A session: a transaction that commits, one that is rolled back, and statements that don't wait for each other.
  await ppg.transaction(async (tx) => {
    await tx.sql.exec`UPDATE letter SET body = ${"short"} WHERE id = 2`;
    assert.deepStrictEqual(await tx.sql`SELECT body FROM letter WHERE id = 2`.collect(), [{ body: "short" }]);
  });
  await assert.rejects(
    ppg.transaction(async (tx) => {
      await tx.exec("DELETE FROM letter");
      throw new Error("no");
    }),
    /^Error: no$/,
  );
  assert.deepStrictEqual(await ppg.sql`SELECT count(*) AS n FROM letter`.collect(), [{ n: 2n }]);
  assert.deepStrictEqual(await ppg.batch({ query: "SELECT 1 AS a" }, { exec: "UPDATE letter SET sent = true" }), [[{ a: 1 }], 2]);
  const session = await low.newSession();
  const answers = await Promise.all([1, 2, 3].map((n) => session.query("SELECT $1::integer AS n, repeat('x', 3000)", n)));
  for (const [index, answer] of answers.entries()) assert.strictEqual((await answer.rows.collect())[0].values[0], index + 1);
  await session.exec("SET search_path = pg_catalog");
  assert.deepStrictEqual((await (await session.query("SHOW search_path")).rows.collect())[0].values, ["pg_catalog"]);
  await assert.rejects(session.query("SELECT 1 / 0"), (error) => error.code === "22012");
  assert.strictEqual(session.active, true);
  session.close();
  const refused = await client(config({ password: "wrong" })).newSession();
  await assert.rejects(refused.query("SELECT 1"), (error) => error.code === "28P01");
  console.log("done");
}

main()
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
