// Reads the texts on widgets, and types numbers into one of them. options: {cases}, each {type: class of a node, name: of
// the widget, typed: [texts]}

module.exports = async (page, { cases }) => {
  const results = [];
  for (const options of cases) results.push(await type(page, options));
  return results;
};

async function type(page, { type, name, typed }) {
  await page.evaluate(async (type) => {
    app.graph.clear();
    app.canvas.ds.reset();
    window.node = LiteGraph.createNode(type);
    node.pos = [500, 200];
    app.graph.add(node);
  }, type);
  await page.waitForTimeout(1000);
  const results = [await page.evaluate(look)];
  for (const text of typed) {
    const place = await page.evaluate(middle, name);
    await page.mouse.click(...place);
    await page.waitForTimeout(300);
    if (!(await page.evaluate(() => LiteGraph.vueNodesMode))) await page.locator(".graphdialog input").fill(text);
    else {
      await page.keyboard.press("Control+A");
      await page.keyboard.type(text);
    }
    await page.keyboard.press("Enter");
    await page.evaluate(() => document.activeElement?.blur());
    await page.waitForTimeout(300);
    results.push(await page.evaluate(look));
    await page.shot(`auto_${type}_${text}`);
  }
  return results;
}

/** {name of a widget: [the text on it, its value]} */
function look() {
  const texts = LiteGraph.vueNodesMode ? ofHtml : ofCanvas;
  return Object.fromEntries(node.widgets.filter(({ type }) => type === "number").map((widget) => [widget.name, [texts(widget), widget.value]]));

  function ofCanvas(widget) {
    const texts = [];
    const context = app.canvas.ctx;
    const { fillText } = context;
    context.fillText = (text, ...rest) => texts.push(text) && fillText.call(context, text, ...rest);
    widget.drawWidget(context, { width: node.size[0], showText: true });
    delete context.fillText;
    return texts.at(-1);
  }

  function ofHtml({ name }) {
    const input = document.querySelector(`[data-node-id="${node.id}"] [aria-label="${name}"] input`);
    if (!input) return "folded";
    const { content } = getComputedStyle(input.parentElement, "::after");
    const hidden = getComputedStyle(input).color === "rgba(0, 0, 0, 0)";
    return content === "none" && !hidden ? input.value : hidden && JSON.parse(content);
  }
}

/** The position of a widget on the screen. */
function middle(name) {
  if (LiteGraph.vueNodesMode) {
    const box = document.querySelector(`[data-node-id="${node.id}"] [aria-label="${name}"] input`).getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  }
  const widget = node.widgets.find((widget) => widget.name === name);
  const box = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
  return [(x + offset[0]) * scale + box.left, (y + offset[1]) * scale + box.top];
}
