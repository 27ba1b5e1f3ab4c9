// Reads the texts of the pack's nodes in the page's language, and the help page of one node.
// options: {nodes: [ids], help: id, shot: name of a screenshot}

module.exports = async (page, { nodes, help, shot }) => {
  const texts = await page.evaluate((names) => {
    app.graph.clear();
    app.canvas.ds.reset();
    return Object.fromEntries(
      names.map((name, i) => {
        const node = LiteGraph.createNode(name);
        node.pos = [60 + (i % 8) * 440, 60 + Math.floor(i / 8) * 440];
        app.graph.add(node);
        return [
          name,
          {
            title: node.title,
            category: node.constructor.category,
            description: node.constructor.nodeData.description,
            inputs: Object.fromEntries(node.inputs.map((input) => [input.name, input.label ?? input.localized_name])),
            widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.label ?? widget.name])),
            outputs: node.outputs.map((output) => output.label ?? output.localized_name ?? output.name),
          },
        ];
      }),
    );
  }, nodes);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(700);
  await page.shot(shot);
  await page.evaluate((help) => app.canvas.selectNode(app.graph.nodes.find((node) => node.type === help)), help);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(700);
  // In newer pages a node is selected only by a click.
  const title = await page.evaluate((help) => {
    const node = app.graph.nodes.find((node) => node.type === help);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] - 15]);
    const { left, top } = app.canvas.canvas.getBoundingClientRect();
    return [left + x, top + y];
  }, help);
  await page.mouse.click(...title);
  await page.locator('[data-testid="info-button"]').click();
  const content = page.locator(".node-help-content");
  await content.locator("li").first().waitFor();
  await page.shot(`${shot}_help`);
  return { texts, help: await content.innerText() };
};
