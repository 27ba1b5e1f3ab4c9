// A headless browser on ComfyUI's page, for the tests: node browser.js SCENARIO.js URL OUT [OPTIONS as JSON].
// A scenario is `async (page, options) => result`. The result is printed as JSON, with the page's errors and warnings.
// `page.shot(name)` saves a screenshot in the folder OUT, unless OUT is empty. The options may contain `settings` and the
// `viewport` of the page.

const path = require("path");
const { chromium } = require(process.env.PLAYWRIGHT_PATH);

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

async function main([scenario, url, out, json = "{}"]) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM_PATH, args: FLAGS });
  try {
    const options = JSON.parse(json);
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
  // The page loads its own workflow when it is ready.
  await page.waitForFunction(() => window.app.graph.nodes.length > 0, null, { timeout: 30000 }).catch(() => {});
}

main(process.argv.slice(2)).catch((error) => {
  console.error(String(error.stack ?? error));
  process.exit(1);
});
