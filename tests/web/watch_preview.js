// Runs graphs from the page, and looks at the previews on the sampler node. options: {cases}, each
// {graph or prompt: in the page's or the API's format, sampler: class of the node, subgraph: put it into one first,
// replace: load the graph again while it runs, interrupt: the run, shot: name of a screenshot}. A short run may end before
// a busy machine has drawn anything, so the last message of each run is sent again and shown until all frames were drawn.

const { helpers } = require("./layout.js");

module.exports = async (page, { cases }) => {
  await page.evaluate(helpers);
  await page.evaluate(() => {
    const { api } = window.comfyAPI.api;
    window.everyNode = (graph = app.graph, prefix = "") =>
      graph.nodes.flatMap((node) => [
        [prefix + node.id, node],
        ...(node.subgraph ? everyNode(node.subgraph, `${prefix}${node.id}:`) : []),
      ]);
    window.sizes = () => Object.fromEntries(everyNode().map(([id, node]) => [id, [...node.size]]));
    window.look = () =>
      everyNode().flatMap(([id, node]) =>
        (node.widgets ?? [])
          .filter((widget) => widget.name === "videocomposer_preview" && !widget.hidden)
          .map((widget) => ({
            id,
            image: widget.element.toDataURL(),
            pixels: [widget.element.width, widget.element.height],
            connected: widget.element.isConnected,
            stock: Boolean(node.imgs?.length),
          })),
      );
    api.addEventListener("videocomposer.preview", ({ detail }) => {
      window.last = detail;
      messages.push({ ...detail, image: detail.image.length });
    });
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, () => (window.ended = end));
    }
  });
  const results = [];
  for (const options of cases) results.push(await watch(page, options));
  return results;
};

async function watch(page, options) {
  if (options.graph) await page.evaluate((graph) => app.loadGraphData(graph), options.graph);
  else await page.evaluate((prompt) => app.loadApiJson(prompt, "a run"), options.prompt);
  await page.waitForTimeout(300);
  await page.evaluate(() => {
    // If ComfyUI has this video in its cache, it sends nothing.
    const seeds = everyNode().flatMap(([, node]) => (node.widgets ?? []).filter(({ name }) => name === "seed"));
    for (const seed of seeds) seed.value = Math.floor(Math.random() * 1e9);
  });
  if (options.subgraph) {
    await page.evaluate((type) => {
      const [, node] = everyNode().find(([, node]) => node.comfyClass === type);
      app.graph.convertToSubgraph(new Set([node]));
    }, options.sampler);
  }
  await page.evaluate(() => {
    app.canvas.ds.reset();
    Object.assign(window, { messages: [], looks: [], ended: null, before: sizes() });
    window.watching = setInterval(() => looks.push(...look()), 40);
  });
  await page.locator('[data-testid="queue-button"]').first().click();
  await page.waitForFunction(() => looks.length > 3 || ended, null, { timeout: 120000 });
  await page.evaluate(() => {
    const shown = look()[0];
    const node = shown && app.graph.getNodeById(Number(shown.id.split(":")[0]));
    if (node) app.canvas.centerOnNode(node);
  });
  if (options.shot) {
    await page.waitForTimeout(300);
    await page.shot(options.shot);
  }
  if (options.replace) {
    await page.evaluate(() => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))));
    await page.evaluate(() => (window.looks.length = 0));
  }
  if (options.interrupt) await page.evaluate(() => window.comfyAPI.api.api.interrupt());
  await page.waitForFunction(() => ended, null, { timeout: 240000 });
  await page.waitForTimeout(500);
  if (options.shot) await page.shot(`${options.shot}_after`);
  const run = await page.evaluate(() => ({ ended, messages: [...messages] }));
  await replay(page);
  const shown = await page.evaluate((sampler) => {
    clearInterval(watching);
    const samplers = everyNode().filter(([, node]) => node.comfyClass === sampler).map(([id]) => id);
    return {
      samplers,
      nodes: [...new Set(looks.map(({ id }) => id))].sort(),
      pixels: looks[0]?.pixels,
      images: new Set(looks.map(({ image }) => image)).size,
      connected: looks.some(({ connected }) => connected),
      stock: looks.some(({ stock }) => stock),
      remaining: look().length,
      misplaced: misplaced(),
      sizes: samplers.map((id) => [before[id], sizes()[id]]),
    };
  }, options.sampler);
  return { ...shown, ...run };
}

async function replay(page) {
  await page.waitForFunction(
    () => {
      const { api } = window.comfyAPI.api;
      // Send it again if a late message of the run has ended it.
      if (!look().length) api.dispatchEvent(new CustomEvent("videocomposer.preview", { detail: last }));
      return new Set(looks.map(({ image }) => image)).size >= last.frames;
    },
    null,
    { timeout: 120000, polling: 500 },
  );
  await page.evaluate(() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("execution_success")));
  await page.waitForTimeout(500);
}
