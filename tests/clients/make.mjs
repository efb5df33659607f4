// The official client of Make, told what to call: a JSON line in for each call, a JSON line out with what came of it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.argv[2]); // the package.json of the folder where the clients are installed
const { Make, MakeError } = require("@makehq/sdk");

async function perform({ url, token, call, args }) {
  const client = new Make(token, new URL(url).host);
  client.protocol = "http";
  const path = call.split(".");
  const method = path.pop();
  const owner = path.reduce((object, name) => object[name], client);
  try {
    return { value: (await owner[method](...args)) ?? null };
  } catch (error) {
    if (!(error instanceof MakeError)) throw error;
    return { refused: error.statusCode, text: error.message };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await perform(JSON.parse(line)).catch((error) => ({ broken: String(error.stack) }))));
}
