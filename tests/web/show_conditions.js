// Runs a graph from the page twice, with another text the second time, and looks at the images and notes on its nodes;
// then loads a workflow that was saved when `model` was a condition node's first socket.
// options: {prompt: in API format, workflow: in the page's format, shot: name of a screenshot}

module.exports = async (page, { prompt, workflow, shot }) => {
  const runs = [];
  await page.evaluate(() => {
    const { api } = window.comfyAPI.api;
    for (const end of ["execution_success", "execution_error"]) api.addEventListener(end, () => (window.ended = end));
  });
  await page.evaluate((prompt) => app.loadApiJson(prompt, "conditions"), prompt);
  await page.evaluate(() => app.graph.arrange?.(120));
  for (const text of ["a red circle", "a blue square"]) {
    await page.evaluate((text) => {
      window.ended = null;
      app.graph.nodes.find(({ type }) => type === "CLIPTextEncode").widgets[0].value = text;
    }, text);
    await page.waitForTimeout(300);
    await page.locator('[data-testid="queue-button"]').first().click();
    await page.waitForFunction(() => window.ended, null, { timeout: 240000 });
    await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
    await page.waitForTimeout(1500);
    runs.push(await page.evaluate(look));
  }
  if (shot) await page.shot(shot);
  await page.evaluate((workflow) => app.loadGraphData(workflow), workflow);
  const output = await page.evaluate(async () => (await app.graphToPrompt()).output);
  return { runs, output };
};

function look() {
  const shown = {};
  const scale = app.canvas.ds.scale;
  for (const node of app.graph.nodes) {
    const html = document.querySelector(`[data-node-id="${node.id}"]`); // of Nodes 2.0
    const all = html ? [...html.querySelectorAll("img")] : (node.imgs ?? []);
    const images = all.filter((image) => image.src.includes("VideoComposer_seen"));
    const note = node.widgets?.find(({ name }) => name === "$$node-text-preview");
    shown[node.type] = {
      html: Boolean(html),
      images: images.map((image) => [image.naturalWidth, image.naturalHeight]),
      // Height on the node: of the element, or of the widget in which the canvas draws it.
      height: images[0]?.isConnected
        ? images[0].getBoundingClientRect().height / scale
        : node.widgets?.find(({ name }) => name.startsWith("$$canvas-image"))?.computedHeight,
      note: note?.value ?? "",
      size: html ? [html.offsetWidth, html.offsetHeight] : [...node.size],
    };
  }
  return { ended: window.ended, shown };
}
