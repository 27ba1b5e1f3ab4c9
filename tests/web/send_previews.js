// Sends preview messages to the page as the host does, including messages that must have no effect.

module.exports = async (page) =>
  page.evaluate(async () => {
    const { api } = window.comfyAPI.api;
    app.graph.clear();
    const node = LiteGraph.createNode("VC3DUNetSampler");
    app.graph.add(node);
    const wait = (ms = 150) => new Promise((resolve) => setTimeout(resolve, ms));
    await wait(600); // HTML nodes grow to fit their contents
    const size = [...node.size];
    // The height of HTML nodes depends on their contents, including the stock preview below.
    const asBefore = ([wide, high], tall) =>
      LiteGraph.vueNodesMode ? Math.abs(wide - size[0]) < 1 && high < tall : wide === size[0] && high === size[1];
    const screen = () => node.widgets.find(({ name }) => name === "videocomposer_preview");
    const shown = () => Boolean(screen() && !screen().hidden);

    // 6 frames of 4 x 2 pixels in rows of 4, each in one colour.
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [16, 4];
    const context = sheet.getContext("2d");
    const colors = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ff00ff"];
    colors.forEach((color, i) => {
      context.fillStyle = color;
      context.fillRect((i % 4) * 4, Math.floor(i / 4) * 2, 4, 2);
    });
    const message = {
      node: String(node.id), type: "VC3DUNetSampler", frames: 6, columns: 4, rate: 20, image: sheet.toDataURL(),
    };
    const send = (change) => api.dispatchEvent(new CustomEvent("videocomposer.preview", { detail: { ...message, ...change } }));
    const stock = () => {
      let reached = false;
      const listener = () => (reached = true);
      api.addEventListener("b_preview_with_metadata", listener);
      const blob = new Blob([]);
      api.dispatchEvent(new CustomEvent("b_preview_with_metadata", { detail: { blob, displayNodeId: message.node, nodeId: message.node } }));
      api.removeEventListener("b_preview_with_metadata", listener);
      return reached;
    };
    const result = {};
    send({ node: "99" });
    send({ node: `${node.id}:1` });
    send({ type: "KSampler" });
    send({ image: "data:image/jpeg;base64,AAAA" });
    await wait();
    result.nothing = shown();
    api.dispatchEvent(new CustomEvent("executing", { detail: null }));
    result.onlyStock = stock();
    send({});
    await wait();
    result.shown = shown();
    result.stockWithOurs = stock();
    const canvas = screen().element;
    result.pixels = [canvas.width, canvas.height];
    const seen = new Set();
    for (let i = 0; i < 60; i++) {
      await wait(15);
      const [r, g, b] = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
      seen.add(`#${[r, g, b].map((value) => value.toString(16).padStart(2, "0")).join("")}`);
    }
    result.colors = colors.every((color) => seen.has(color)) && seen.size === colors.length;
    const tall = node.size[1];
    result.grown = tall > size[1];
    const saved = app.graph.serialize().nodes[0];
    result.saved = asBefore(saved.size, tall) && saved.widgets_values.length === node.widgets.length - 1;
    api.dispatchEvent(new CustomEvent("executing", { detail: String(node.id) }));
    result.stays = shown();
    api.dispatchEvent(new CustomEvent("executing", { detail: "77" }));
    result.ended = !shown() && asBefore(node.size, tall);
    const content = canvas.toDataURL();
    await wait(200);
    result.still = content === canvas.toDataURL();

    const ends = {
      executing: null, status: { exec_info: { queue_remaining: 0 } }, execution_start: {}, execution_success: {},
      reconnecting: {},
    };
    result.ends = [];
    for (const [event, detail] of Object.entries(ends)) {
      send({});
      await wait(60);
      const before = shown();
      api.dispatchEvent(new CustomEvent(event, { detail }));
      if (before && !shown()) result.ends.push(event);
    }
    send({});
    api.dispatchEvent(new CustomEvent("executing", { detail: null })); // before the image is decoded
    await wait();
    result.late = shown();
    for (let i = 0; i < 20; i++) send({ rate: 1 + i });
    await wait();
    result.widgets = node.widgets.filter(({ name }) => name === "videocomposer_preview").length;
    node.setSize([size[0] + 50, node.size[1] + 50]);
    const resized = [...node.size];
    api.dispatchEvent(new CustomEvent("executing", { detail: null }));
    result.resizedStays = node.size.every((side, i) => Math.abs(side - resized[i]) < 1);

    await app.extensionManager.setting.set("VideoComposer.Preview", false);
    send({});
    await wait();
    result.off = shown();
    await app.extensionManager.setting.set("VideoComposer.Preview", true);
    send({});
    await wait();
    app.graph.remove(node);
    send({});
    await wait();
    result.removed = !document.contains(canvas);
    return result;
  });
