// Access to the tracks' editor of the first node of a graph, for tests.

/** Puts a new node with an editor onto an empty graph, or uses the existing node. */
module.exports = async (page, fresh = true) => {
  if (fresh) {
    await page.evaluate(() => app.graph.clear());
    await page.waitForFunction(() => !document.querySelector('[data-action="track"]'));
    await page.evaluate(() => {
      app.canvas.ds.reset();
      const node = LiteGraph.createNode("VCMotionFromTracks");
      node.pos = [60, 60];
      app.graph.add(node);
      // Newer pages give a node the values of a removed node with the same id.
      const fresh = { tracks: '[{"x": 128, "y": 256}, {"x": 384, "y": 256}]', canvas_width: 512, canvas_height: 512 };
      for (const [name, value] of Object.entries(fresh)) node.widgets.find((widget) => widget.name === name).value = value;
    });
  }
  const button = (action) => page.locator(`[data-action="${action}"]`).first();
  const canvas = button("track").locator("xpath=../following-sibling::canvas");
  await canvas.waitFor();
  await page.waitForTimeout(500);

  const widget = (name) =>
    page.evaluate((name) => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "VCMotionFromTracks");
      return node.widgets.find((widget) => widget.name === name).value;
    }, name);
  const size = async () => [await widget("canvas_width"), await widget("canvas_height")];

  /** The page position of a point in pixels of the node's canvas, which is centred in its element. */
  const at = async (x, y, shown) => {
    const box = await canvas.boundingBox();
    const [width, height] = shown ?? (await size());
    const scale = Math.min(box.width / width, box.height / height);
    return [
      box.x + (box.width - width * scale) / 2 + x * scale,
      box.y + (box.height - height * scale) / 2 + y * scale,
    ];
  };
  return {
    canvas,
    button,
    widget,
    at,
    read: async () => [JSON.parse(await widget("tracks")), ...(await size())],
    set: (name, value) =>
      page.evaluate(([name, value]) => {
        app.graph.nodes[0].widgets.find((widget) => widget.name === name).value = value;
        app.graph.setDirtyCanvas(true, true);
      }, [name, value]),
    click: async (x, y, options, shown) => page.mouse.click(...(await at(x, y, shown)), options),
    drag: async (from, to) => {
      await page.mouse.move(...(await at(...from)));
      await page.mouse.down();
      await page.mouse.move(...(await at(...to)), { steps: 5 });
      await page.mouse.up();
    },
    caption: () => button("track").locator("xpath=../../div[2]").innerText(),
    /** The number of blue pixels in the editor; only the image's object is so blue. */
    blue: () => canvas.evaluate((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let i = 0; i < data.length; i += 4) count += data[i + 2] > 90 && data[i + 2] > 2 * data[i] && data[i + 2] > 2 * data[i + 1];
      return count;
    }),
  };
};
