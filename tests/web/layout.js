// What stands wrong on the page, for scenarios: `await page.evaluate(helpers)` makes `misplaced()`.

exports.helpers = () => {
  /** [left, top, width, height] of a node with its title as it is drawn, in pixels of the graph. */
  const box = (node) => {
    if (!LiteGraph.vueNodesMode) return [...(node.boundingRect ?? node.getBounding())];
    const { offsetWidth, offsetHeight } = document.querySelector(`[data-node-id="${node.id}"]`); // whatever the zoom is
    return [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, offsetWidth, offsetHeight];
  };
  const overlap = ([ax, ay, aw, ah], [bx, by, bw, bh]) => ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah;
  const inside = ([ax, ay, aw, ah], [bx, by, bw, bh]) => ax >= bx && ay >= by && ax + aw <= bx + bw && ay + ah <= by + bh;

  /** What stands wrong: pairs of nodes that overlap, and nodes that are in no group or in several, but the note. */
  window.misplaced = () => {
    const boxes = app.graph.nodes.map((node) => [`${node.type} ${node.id}`, box(node)]);
    const groups = app.graph.groups.map(({ pos, size }) => [...pos, ...size]);
    const pairs = boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([, other]) => overlap(one, other)).map(([b]) => `${a} and ${b}`));
    const out = boxes.filter(([name, one]) => !name.startsWith("MarkdownNote") && groups.filter((group) => inside(one, group)).length !== 1);
    return [...pairs, ...out.map(([name]) => `${name} and its group`)];
  };
};
