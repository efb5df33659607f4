// The official client of Qlik, told what to call: a JSON line in for each call, a JSON line out with what came of it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const require = createRequire(process.argv[2]); // the package.json of the folder where the clients are installed
const load = (name) => import(pathToFileURL(require.resolve(`@qlik/api/${name}`)));
const current = await load("workflows/automations");
const legacy = await load("automations");

async function perform({ url, token, call, args }) {
  const [name, of = current] = call.startsWith("legacy.") ? [call.slice("legacy.".length), legacy] : [call];
  const options = { hostConfig: { authType: "apikey", host: url, apiKey: token }, noCache: true };
  try {
    let answer = await of[name](...args, options);
    const pages = [answer.data];
    while (answer.next && pages.length < 100) pages.push((answer = await answer.next(options)).data);
    return { status: answer.status, value: pages[0] ?? null, pages };
  } catch (error) {
    if (typeof error.status !== "number") throw error;
    return { refused: error.status, value: error.data ?? null };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await perform(JSON.parse(line)).catch((error) => ({ broken: String(error.stack) }))));
}
