// Sends the page texts for a node of the pack and for a stock one, and runs both; returns the texts before and after, and
// whether all of a long text is to be seen.

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
    const long = Array.from({ length: 4 }, (_, i) => `Sentence ${i} of what a node may have to say about a checkpoint.`).join(" ");
    api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: String(nodes[0].id), text: long } }));
    app.canvas.setDirty(true, true);
    await wait(500);
    const around = [...document.querySelectorAll("div")].filter(({ textContent }) => textContent.trim() === long);
    const whole = around.every(({ scrollHeight, clientHeight }) => scrollHeight <= clientHeight + 1);
    return { before, after, found: around.length > 0, whole };
  });
