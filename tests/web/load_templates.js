// Loads templates as the page serves them, and reports nodes that overlap or are outside their group, with and without the
// sampler's preview. options: {templates: [names], pack: folder}

const { helpers } = require("./layout.js");

module.exports = async (page, { templates, pack }) => {
  await page.evaluate(helpers);
  await page.evaluate(previews);
  const results = {};
  for (const name of templates) {
    results[name] = await page.evaluate(load, [name, pack]);
    await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
    await page.waitForFunction(() => !LiteGraph.vueNodesMode || document.querySelectorAll("[data-node-id]").length >= app.graph.nodes.length);
    await page.waitForTimeout(500);
    results[name].dialogs = await page.locator(".p-dialog").allInnerTexts();
    results[name].misplaced = await page.evaluate(() => misplaced());
    await page.shot(`template_${name}`);
    await page.evaluate(() => preview());
    await page.waitForTimeout(700);
    results[name].grown = await page.evaluate(() => sampler().size[1]) - results[name].before;
    results[name].misplacedWithPreview = await page.evaluate(() => misplaced());
    await page.shot(`template_${name}_preview`);
    await page.evaluate(() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("executing", { detail: null })));
    for (const dialog of await page.locator(".p-dialog").all()) await dialog.locator(".p-dialog-close-button").click();
    await page.waitForFunction(() => !document.querySelector(".p-dialog"));
  }
  return results;
};

async function load([name, pack]) {
  // Later versions have more widgets, after the old ones.
  const begins = (values, old) => old.every((value, i) => JSON.stringify(value) === JSON.stringify(values[i]));
  const { api } = window.comfyAPI.api;
  const address = (suffix) => api.apiURL(`/workflow_templates/${encodeURIComponent(pack)}/${name}.${suffix}`); // as the page requests it
  const file = await (await fetch(address("json"))).json();
  const thumbnail = (await fetch(address("jpg"))).ok;
  await app.loadGraphData(structuredClone(file), true, true);
  const { prompt, error } = await app.graphToPrompt().then((prompt) => ({ prompt }), (error) => ({ error: String(error) }));
  const exists = (node) => node.type in LiteGraph.registered_node_types;
  const saved = app.graph.serialize();
  const old = new Map(file.nodes.map((node) => [node.id, node]));
  return {
    thumbnail,
    error,
    missing: app.graph.nodes.filter((node) => !exists(node) || node.has_errors).map((node) => node.type),
    nodes: [file.nodes.length, saved.nodes.length],
    links: [file.links.length, saved.links.length],
    changed: saved.nodes
      .filter((node) => !begins(node.widgets_values ?? [], old.get(node.id)?.widgets_values ?? []))
      .map((node) => [node.type, node.widgets_values, old.get(node.id)?.widgets_values]),
    prompt: prompt && Object.keys(prompt.output).length,
    before: sampler().size[1],
  };
}

function previews() {
  window.sampler = () => app.graph.nodes.find(({ type }) => ["VC3DUNetSampler", "VCSuperResolution"].includes(type));
  window.preview = () => {
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [256, 256];
    sheet.getContext("2d").fillRect(0, 0, 256, 256);
    const detail = { node: String(sampler().id), type: sampler().type, frames: 16, columns: 4, rate: 8, image: sheet.toDataURL() };
    window.comfyAPI.api.api.dispatchEvent(new CustomEvent("videocomposer.preview", { detail }));
  };
}
