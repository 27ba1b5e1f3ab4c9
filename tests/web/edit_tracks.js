// Draws tracks as a user does, and reads the text that it makes after every step.

module.exports = async (page) => {
  await page.evaluate(() => {
    app.graph.clear();
    app.canvas.ds.reset();
    const node = LiteGraph.createNode("VCMotionFromTracks");
    node.pos = [60, 60];
    app.graph.add(node);
  });
  const canvas = page.locator('[data-action="track"]').locator("xpath=../following-sibling::canvas");
  await canvas.waitFor();
  await page.waitForTimeout(500);

  // Places are in pixels of the node's canvas, which lies square in the middle of its element.
  const at = async (x, y, size = 512) => {
    const box = await canvas.boundingBox();
    const scale = Math.min(box.width, box.height) / size;
    return [
      box.x + (box.width - size * scale) / 2 + x * scale,
      box.y + (box.height - size * scale) / 2 + y * scale,
    ];
  };
  const widget = (name) =>
    page.evaluate((name) => app.graph.nodes[0].widgets.find((widget) => widget.name === name).value, name);
  const read = async () => [JSON.parse(await widget("tracks")), await widget("canvas_width"), await widget("canvas_height")];
  const set = (name, value) =>
    page.evaluate(([name, value]) => {
      app.graph.nodes[0].widgets.find((widget) => widget.name === name).value = value;
      app.graph.setDirtyCanvas(true, true);
    }, [name, value]);
  const click = async (x, y, options, size) => page.mouse.click(...(await at(x, y, size)), options);
  const seen = () => canvas.evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + data[i + 1] * 7 + data[i + 2] * 13) % 1000003;
    return sum;
  });
  const steps = { fresh: await read() };
  await page.shot("tracks_fresh");

  await click(450, 100);
  steps.added = await read();
  await click(256, 256); // on the line between the first two
  steps.inserted = await read();
  await page.mouse.move(...(await at(384, 256)));
  await page.mouse.down();
  await page.mouse.move(...(await at(384, 400)), { steps: 5 });
  await page.mouse.up();
  steps.moved = await read();
  await page.mouse.move(...(await at(450, 100)));
  await page.mouse.down();
  await page.mouse.move(...(await at(700, 100)), { steps: 5 }); // beyond the edge
  await page.mouse.up();
  steps.clamped = await read();
  await click(512, 100, { button: "right" });
  steps.deleted = await read();
  await page.waitForTimeout(400);
  await page.locator('[data-action="track"]').click();
  await click(60, 60);
  await page.waitForTimeout(600); // or it is a double click
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
  await page.locator('[data-action="clear"]').click();
  await page.keyboard.press("Control+z");
  await page.waitForTimeout(1000);
  steps.undone = await read();
  steps.editorsAfterUndo = await page.locator('[data-action="track"]').count();

  const first = await seen();
  await page.locator("textarea.comfy-multiline-input").fill('[[10, 10], [500, 500]]');
  await page.waitForTimeout(300);
  const second = await seen();
  await page.shot("tracks_text");
  await set("tracks", "[{'x': 1, 'y': 400}, {'x': 400, 'y': 1}]");
  await page.waitForTimeout(300);
  const third = await seen();
  steps.textShown = new Set([first, second, third]).size;
  await set("tracks", "nonsense");
  await page.waitForTimeout(300);
  await click(100, 100);
  steps.unreadable = [await widget("tracks"), await page.locator('[data-action="track"]').locator("xpath=../../div[2]").innerText()];
  await page.shot("tracks_unreadable");
  await page.locator('[data-action="clear"]').click();
  steps.cleared = await read();

  // A canvas without a size of its own is shown as large as the points make likely, and keeps that size once drawn on.
  await set("canvas_width", 0);
  await set("canvas_height", 0);
  await set("tracks", '[{"x": 16, "y": 32}, {"x": 48, "y": 32}]');
  await page.waitForTimeout(400);
  steps.unsized = await read();
  await click(48, 56, {}, 64);
  steps.sized = await read();
  await set("width", 256);
  await set("height", 128);
  await page.waitForTimeout(300);
  await page.shot("tracks_cropped");

  // Through the page's own saving and loading the editor stays one, and says what was saved.
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
