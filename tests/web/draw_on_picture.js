// Draws on images as a user does. options: {pictures: [{path, at: position of the object, in pixels}], prompt: a graph in
// API format with one of the images connected to its tracks}.

const open = require("./editor.js");

module.exports = async (page, { pictures, prompt }) => {
  const report = { drawn: [] };
  for (const picture of pictures) report.drawn.push(await draw(page, picture));
  report.persistence = await checkPersistence(page);
  report.panel = await select(page);
  report.run = await run(page, prompt);
  return report;
};

async function choose(page, editor, path) {
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), editor.button("background").click()]);
  await chooser.setFiles(path);
  await page.waitForFunction(() => app.graph.nodes[0].properties.videocomposer_background, null, { timeout: 15000 });
  await page.waitForTimeout(500);
}

/** Draws a track from the image's object to the right; also returns the scaled track that a new node starts with. */
async function draw(page, { path, at: [x, y] }) {
  const editor = await open(page);
  const before = await editor.blue();
  await choose(page, editor, path);
  const scaled = await editor.read();
  await page.waitForTimeout(500);
  const blue = [before, await editor.blue()];
  await editor.button("clear").click();
  await editor.click(x, y);
  await page.waitForTimeout(700); // so that it is not a double click
  await editor.click(x + 60, y);
  await page.shot(`picture_${path.split("/").at(-1).split(".")[0]}`);
  return { scaled, blue, tracks: await editor.read(), name: await page.evaluate(() => app.graph.nodes[0].properties.videocomposer_background) };
}

/** The background after undoing, loading again, copying, removing it, and without its file. */
async function checkPersistence(page) {
  const states = {};
  const editor = await open(page, false);
  const look = async () => {
    await page.waitForTimeout(1000);
    return [(await editor.blue()) > 0, JSON.parse(await editor.widget("tracks")).length, await editor.widget("canvas_width")];
  };
  states.before = await look();
  await page.keyboard.press("Control+z"); // the second point
  states.undone = await look();
  const saved = await page.evaluate(() => JSON.parse(JSON.stringify(app.graph.serialize())));
  states.characters = JSON.stringify(saved).length;
  await page.evaluate((saved) => app.loadGraphData(saved), saved);
  states.loaded = await look();
  states.copied = await page.evaluate(async () => {
    const [node] = app.graph.nodes;
    const copy = node.clone();
    copy.pos = [900, 60];
    app.graph.add(copy);
    for (let i = 0; i < 50; i++) {
      await new Promise((done) => setTimeout(done, 100));
      const canvas = copy.widgets.find((widget) => widget.name === "videocomposer_tracks").element.querySelector("canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      for (let at = 0; at < data.length; at += 4) if (data[at + 2] > 200 && data[at + 1] < 90) return true;
    }
    return false;
  });
  await page.shot("picture_copied");

  await page.evaluate((saved) => app.loadGraphData(saved), saved);
  await look();
  await editor.set("canvas_width", 100);
  await page.waitForTimeout(500);
  states.bent = await editor.caption();
  await editor.set("canvas_width", 512);
  await editor.button("background").click();
  states.away = [...(await look()), await editor.button("background").innerText()];
  await page.keyboard.press("Control+z");
  states.back = await look();
  for (const name of ["gone.png [input]", "gone.png [temp]"]) {
    saved.nodes[0].properties.videocomposer_background = name;
    await page.evaluate((saved) => app.loadGraphData(saved), saved);
    await page.waitForTimeout(700);
    states[name] = [await editor.blue(), await editor.caption(), await editor.button("background").innerText()];
  }
  await page.shot("picture_gone");
  return states;
}

/** The width of the editor before and after its node is selected, and the rows that the side panel has for it. */
async function select(page) {
  const editor = await open(page);
  await page.evaluate(() => app.canvas.deselectAll?.());
  const width = async () => {
    await page.waitForTimeout(700);
    return Math.round((await editor.canvas.boundingBox()).width);
  };
  const before = await width();
  await page.evaluate(() => {
    app.canvas.selectNode(app.graph.nodes[0]);
    app.graph.setDirtyCanvas(true, true);
  });
  const after = await width();
  await page.shot("picture_selected");
  const panel = page.locator('[data-testid="properties-panel"]');
  const text = (await panel.count()) ? await panel.innerText() : null; // older pages have none
  return { before, after, rows: text?.includes("videocomposer_tracks"), others: text?.includes("canvas_width") };
}

/** The image from the connected socket, after a run. */
async function run(page, prompt) {
  await page.evaluate(async (prompt) => {
    await app.loadApiJson(prompt, "a run");
    const { api } = window.comfyAPI.api;
    window.ended = null;
    for (const end of ["execution_success", "execution_error"]) api.addEventListener(end, () => (window.ended = end));
  }, prompt);
  const editor = await open(page, false);
  const before = await editor.read();
  await page.locator('[data-testid="queue-button"]').first().click();
  await page.waitForFunction(() => ended, null, { timeout: 120000 });
  await page.waitForTimeout(1500);
  await page.evaluate(() => app.canvas.centerOnNode(app.graph.nodes.find((node) => node.comfyClass === "VCMotionFromTracks")));
  await page.waitForTimeout(700);
  await page.shot("picture_ran");
  return { ended: await page.evaluate(() => ended), before, after: await editor.read(), blue: await editor.blue() };
}
