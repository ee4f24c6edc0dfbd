// The databases fall asleep when all sessions of a program are amid a transaction: it says "ready", and waits for a line.
const readline = require("node:readline");

let waiting = 0;
let release;
const released = new Promise((resolve) => (release = resolve));

exports.pause = async (sessions) => {
  waiting += 1;
  if (waiting === sessions) {
    console.log("ready");
    readline.createInterface({ input: process.stdin }).once("line", release);
  }
  await released;
};

// Runs `session` on each URL of the command line, at the same time.
exports.run = (session) => {
  const urls = process.argv.slice(2);
  Promise.all(urls.map((url) => session(url, () => exports.pause(urls.length))))
    .then(() => {
      console.log("done");
      process.exit(0);
    })
    .catch((error) => {
      console.error(error);
      process.exit(1);
    });
};
