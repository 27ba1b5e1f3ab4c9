// Draws tracks as a user does, and reads the resulting text after every step.

const open = require("./editor.js");

module.exports = async (page) => {
  const { canvas, at, widget, read, set, click, drag, caption, button } = await open(page);
  const checksum = () => canvas.evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + data[i + 1] * 7 + data[i + 2] * 13) % 1000003;
    return sum;
  });
  const steps = { fresh: await read(), deprecated: [] };
  page.on("console", (message) => message.text().includes("deprecated") && steps.deprecated.push(message.text()));
  await page.shot("tracks_fresh");

  await click(450, 100);
  steps.added = await read();
  await click(256, 256); // on the line between the first two
  steps.inserted = await read();
  await drag([384, 256], [384, 400]);
  steps.moved = await read();
  await drag([450, 100], [700, 100]); // beyond the edge
  steps.clamped = await read();
  await click(512, 100, { button: "right" });
  steps.deleted = await read();
  await page.waitForTimeout(400);
  await button("track").click();
  await click(60, 60);
  await page.waitForTimeout(600); // so that it is not a double click
  await click(60, 200);
  steps.second = await read();
  await page.shot("tracks_two");
  await page.waitForTimeout(600);
  await page.mouse.dblclick(...(await at(60, 200)));
  steps.doubled = await read();
  await page.waitForTimeout(600);
  await page.mouse.dblclick(...(await at(300, 480)));
  steps.doubledOnNothing = await read();

  await page.waitForTimeout(600);
  await button("clear").click();
  await page.keyboard.press("Control+z");
  await page.waitForTimeout(1000);
  steps.undone = await read();
  steps.editorsAfterUndo = await page.locator('[data-action="track"]').count();

  // A box drawn with the button, and its path; a box drawn with Shift, then moved by its first point.
  await button("box").click();
  await drag([300, 60], [420, 160]);
  await click(360, 300);
  steps.box = (await read())[0][2];
  await page.keyboard.down("Shift");
  await drag([100, 400], [40, 300]);
  await page.keyboard.up("Shift");
  await drag([70, 350], [90, 370]);
  steps.secondBox = (await read())[0][3];
  await page.shot("tracks_boxes");
  await page.waitForTimeout(600);
  await page.mouse.dblclick(...(await at(90, 370))); // a change after the last release of the mouse
  steps.boxes = (await read())[0].filter((track) => track.box).length;
  await page.keyboard.press("Control+z");
  await page.waitForTimeout(1000);
  steps.boxesAfterUndo = (await read())[0].filter((track) => track.box).length;

  const first = await checksum();
  await page.locator('textarea.comfy-multiline-input, [data-node-id] textarea').first().fill('[[10, 10], [500, 500]]');
  await page.waitForTimeout(300);
  const second = await checksum();
  await page.shot("tracks_text");
  await set("tracks", "[{'x': 1, 'y': 400}, {'x': 400, 'y': 1}]");
  await page.waitForTimeout(300);
  const third = await checksum();
  steps.textShown = new Set([first, second, third]).size;
  await set("tracks", "nonsense");
  await page.waitForTimeout(300);
  await click(100, 100);
  steps.unreadable = [await widget("tracks"), await caption()];
  await page.shot("tracks_unreadable");
  await button("clear").click();
  steps.cleared = await read();

  // A canvas without a size is shown in a size that fits the points, and keeps it after the first change.
  await set("canvas_width", 0);
  await set("canvas_height", 0);
  await set("tracks", '[{"x": 16, "y": 32}, {"x": 48, "y": 32}]');
  await page.waitForTimeout(400);
  steps.unsized = await read();
  await click(48, 56, {}, [64, 64]);
  steps.sized = await read();
  await set("width", 256);
  await set("height", 128);
  await page.waitForTimeout(300);
  await page.shot("tracks_cropped");

  // After saving and loading there is still one editor, and it shows the saved tracks.
  const saved = await page.evaluate(() => JSON.parse(JSON.stringify(app.graph.serialize())));
  await page.evaluate((saved) => app.loadGraphData(saved), saved);
  await page.waitForTimeout(800);
  steps.loaded = await read();
  steps.editors = await page.locator('[data-action="track"]').count();
  const prompt = await page.evaluate(async () => (await app.graphToPrompt()).output);
  steps.prompt = Object.keys(Object.values(prompt)[0].inputs);
  await page.evaluate(() => app.graph.clear());
  await page.waitForTimeout(500);
  steps.editorsAfterClear = await page.locator('[data-action="track"]').count();
  return steps;
};
