// Finds misplaced nodes, for scenarios: `await page.evaluate(helpers)` defines `misplaced()`.

exports.helpers = () => {
  /** [left, top, width, height] of a node with its title as drawn, in graph pixels. */
  const box = (node) => {
    if (!LiteGraph.vueNodesMode) return [...(node.boundingRect ?? node.getBounding())];
    const { offsetWidth, offsetHeight } = document.querySelector(`[data-node-id="${node.id}"]`); // independent of the zoom
    return [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, offsetWidth, offsetHeight];
  };
  const overlap = ([ax, ay, aw, ah], [bx, by, bw, bh]) => ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah;
  const inside = ([ax, ay, aw, ah], [bx, by, bw, bh]) => ax >= bx && ay >= by && ax + aw <= bx + bw && ay + ah <= by + bh;

  /** Returns pairs of nodes that overlap, and nodes (except the note) that are in no group or in several groups. */
  window.misplaced = () => {
    const boxes = app.graph.nodes.map((node) => [`${node.type} ${node.id}`, box(node)]);
    const groups = app.graph.groups.map(({ pos, size }) => [...pos, ...size]);
    const pairs = boxes.flatMap(([a, box], i) => boxes.slice(i + 1).filter(([, other]) => overlap(box, other)).map(([b]) => `${a} and ${b}`));
    const out = boxes.filter(([name, box]) => !name.startsWith("MarkdownNote") && groups.filter((group) => inside(box, group)).length !== 1);
    return [...pairs, ...out.map(([name]) => `${name} and its group`)];
  };
};
