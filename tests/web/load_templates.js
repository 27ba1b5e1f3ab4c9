// Loads templates as the page serves them. given: {templates: [names], pack: folder, own: the pack's nodes}

module.exports = async (page, { templates, pack }) => {
  const results = {};
  for (const name of templates) {
    results[name] = await page.evaluate(async ([name, pack]) => {
      const { api } = window.comfyAPI.api;
      const at = (ending) => api.apiURL(`/workflow_templates/${encodeURIComponent(pack)}/${name}.${ending}`);
      const file = await (await fetch(at("json"))).json();
      const thumbnail = (await fetch(at("jpg"))).ok;
      await app.loadGraphData(structuredClone(file), true, true);
      const { prompt, error } = await app.graphToPrompt().then((prompt) => ({ prompt }), (error) => ({ error: String(error) }));
      const known = (node) => node.type in LiteGraph.registered_node_types;
      const saved = app.graph.serialize();
      const old = new Map(file.nodes.map((node) => [node.id, node]));
      return {
        thumbnail,
        error,
        missing: app.graph.nodes.filter((node) => !known(node) || node.has_errors).map((node) => node.type),
        nodes: [file.nodes.length, saved.nodes.length],
        links: [file.links.length, saved.links.length],
        changed: saved.nodes
          .filter((node) => JSON.stringify(node.widgets_values ?? []) !== JSON.stringify(old.get(node.id)?.widgets_values ?? []))
          .map((node) => [node.type, node.widgets_values, old.get(node.id)?.widgets_values]),
        overlapping: app.graph.nodes.flatMap((a, i) =>
          app.graph.nodes.slice(i + 1).filter((b) => overlap(a.boundingRect ?? a.getBounding(), b.boundingRect ?? b.getBounding())).map((b) => `${a.type} ${b.type}`),
        ),
        prompt: prompt && Object.keys(prompt.output).length,
      };
      function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
        return ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah;
      }
    }, [name, pack]);
    await page.waitForTimeout(400);
    results[name].dialogs = await page.locator(".p-dialog").allInnerTexts();
    await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
    await page.waitForTimeout(700);
    await page.shot(`template_${name}`);
  }
  return results;
};
