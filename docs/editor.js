// Records the editor for README.md: loads a template, draws a track as a user does, runs the template and plays the
// result. tests/web/browser.js runs it and writes editor_000_125.png and following, number and milliseconds; docs/editor.py
// joins them to editor.webp. Use a ComfyUI that has just been started: what it has in its cache, it does not show again.

const open = require("../tests/web/editor.js");

const TEMPLATE = "04 Motion along drawn tracks";
const VIDEO = 16; // frames of the result
const TRACK = [[128, 128], [150, 165], [185, 175], [205, 135], [205, 90]]; // in pixels of the image

module.exports = async (page, { pack = "ComfyUI-VideoComposer" }) => {
  let frames = 0;
  const shoot = (milliseconds) => page.shot(`editor_${String(frames++).padStart(3, "0")}_${milliseconds}`);
  await page.evaluate(async ([name, pack]) => {
    const at = window.comfyAPI.api.api.apiURL(`/workflow_templates/${encodeURIComponent(pack)}/${name}.json`);
    await app.loadGraphData(await (await fetch(at)).json(), true, true);
    // The editor, the sampler and the result side by side; the other nodes are outside the window.
    app.graph._groups.length = 0;
    const places = {
      VCMotionFromTracks: [0, 0], STCEncode: [400, 0], VC3DUNetSampler: [400, 340],
      VAEDecode: [770, 0], ImageScale: [770, 100], CreateVideo: [770, 270], SaveVideo: [770, 410],
    };
    for (const node of app.graph.nodes) node.pos = places[node.type] ?? [node.pos[0] - 4000, node.pos[1]];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [75, 145];
    app.canvas.setDirty(true, true);
  }, [TEMPLATE, pack]);
  await page.waitForTimeout(1500);
  const { at, button } = await open(page, false);
  await run(page); // so that the editor shows the image under the tracks
  await page.evaluate(() => {
    app.graph.nodes.find(({ type }) => type === "VC3DUNetSampler").widgets[0].value += 1; // to sample again
  });
  await page.waitForTimeout(6000); // until the page's notices are gone
  await shoot(1500);
  await button("clear").click();
  await shoot(500);
  for (const point of TRACK) {
    await page.mouse.click(...(await at(...point)));
    await page.waitForTimeout(700); // otherwise it is a double click
    await shoot(400);
  }
  await shoot(600);
  await run(page, () => shoot(125).then(() => page.waitForTimeout(250)));
  await page.waitForTimeout(4000); // until the page's notices are gone
  const played = page.locator("video").first();
  for (let frame = 0; frame < 2 * VIDEO; frame++) {
    await played.evaluate((video, part) => new Promise((resolve) => {
      video.pause();
      video.addEventListener("seeked", resolve, { once: true });
      video.currentTime = part * video.duration;
    }), (frame % VIDEO + 0.5) / VIDEO);
    await shoot(125); // 8 frames per second
  }
  return frames;
};

/** Runs the graph to its end, and calls `meanwhile` until then. */
async function run(page, meanwhile = () => page.waitForTimeout(200)) {
  let success;
  page.evaluate(() => new Promise((resolve) => {
    for (const end of ["success", "error"])
      window.comfyAPI.api.api.addEventListener(`execution_${end}`, () => resolve(end === "success"), { once: true });
  })).then((result) => (success = result));
  await page.keyboard.press("Control+Enter");
  while (success === undefined) await meanwhile();
  if (!success) throw new Error(`The template ${TEMPLATE} did not run.`);
}
