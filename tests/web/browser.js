// A headless browser on ComfyUI's page, for the tests: node browser.js SCENARIO.js URL OUT [JSON].
// A scenario is `async (page, given) => result`; the result is printed as JSON, with what the page complained about.
// `page.shot(name)` keeps a picture in the folder OUT, where it is not empty. What is given may hold `settings` and the
// `viewport` of the page.

const path = require("path");
const { chromium } = require(process.env.PLAYWRIGHT_PATH);

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

async function main([scenario, url, out, given = "{}"]) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM_PATH, args: FLAGS });
  try {
    const options = JSON.parse(given);
    const page = await browser.newPage({ viewport: options.viewport ?? { width: 1600, height: 1000 } });
    const complaints = [];
    page.on("pageerror", (error) => complaints.push({ kind: "error", text: String(error.stack ?? error), where: "" }));
    page.on("console", (message) => {
      const [kind, where] = [message.type(), message.location().url];
      if (["error", "warning"].includes(kind)) complaints.push({ kind, text: message.text(), where });
    });
    page.shot = async (name) => out && page.screenshot({ path: path.join(out, `${name}.png`) });
    await page.request.post(`${url}/settings`, {
      data: { "Comfy.TutorialCompleted": true, "Comfy.Locale": "en", "LiteGraph.Canvas.MinFontSizeForLOD": 0, ...options.settings },
    });
    await page.goto(url);
    await ready(page);
    const result = await require(path.resolve(scenario))(page, options);
    console.log(JSON.stringify({ result, complaints }));
  } finally {
    await browser.close();
  }
}

async function ready(page) {
  await page.waitForFunction(
    () => window.app?.graph && window.app.extensionManager?.setting && document.querySelector("#graph-canvas"),
    null,
    { timeout: 90000 },
  );
  // The page loads a workflow of its own once everything is there.
  await page.waitForFunction(() => window.app.graph.nodes.length > 0, null, { timeout: 30000 }).catch(() => {});
}

main(process.argv.slice(2)).catch((error) => {
  console.error(String(error.stack ?? error));
  process.exit(1);
});
