// Sends the page texts for a node of the pack and for a stock node, and runs both; returns the texts before and after,
// and whether a long text is fully visible.

module.exports = async (page) =>
  page.evaluate(async () => {
    const { api } = window.comfyAPI.api;
    app.graph.clear();
    const nodes = ["STCEncode", "KSampler"].map((type) => app.graph.add(LiteGraph.createNode(type)) ?? app.graph._nodes.at(-1));
    const wait = (ms = 150) => new Promise((resolve) => setTimeout(resolve, ms));
    const texts = () => nodes.map((node) => node.widgets.find(({ name }) => name === "$$node-text-preview")?.value);
    for (const node of nodes) {
      api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: String(node.id), text: "16 frames" } }));
    }
    await wait();
    const before = texts();
    for (const node of nodes) api.dispatchEvent(new CustomEvent("executing", { detail: String(node.id) }));
    await wait();
    api.dispatchEvent(new CustomEvent("executing", { detail: null }));
    const after = texts();
    const long = Array.from({ length: 4 }, (_, i) => `Sentence ${i} of a long note that a node shows about a checkpoint.`).join(" ");
    api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: String(nodes[0].id), text: long } }));
    app.canvas.setDirty(true, true);
    await wait(500);
    const elements = [...document.querySelectorAll("div")].filter(({ textContent }) => textContent.trim() === long);
    const fullyVisible = elements.every(({ scrollHeight, clientHeight }) => scrollHeight <= clientHeight + 1);
    return { before, after, exists: elements.length > 0, fullyVisible };
  });
