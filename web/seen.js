// Condition nodes show what the network sees on themselves (nodes/host/pictures.py). The page's own widget for pictures
// that move is satisfied with the height of a line of text: here it gets room, once, which a user may take away again.

import { app } from "../../scripts/app.js";

const PICTURE = "$$comfy_animation_preview"; // the page's widget for pictures that move
const CATEGORY = "VideoComposer";
const HEIGHT = 220;

app.registerExtension({
  name: "VideoComposer.seen",
  nodeCreated(node) {
    if (!node.constructor.nodeData?.category?.startsWith(CATEGORY)) return;
    const add = node.addDOMWidget;
    node.addDOMWidget = function (name, ...rest) {
      const widget = add.call(this, name, ...rest);
      if (name !== PICTURE) return widget;
      widget.options.getMinHeight = () => HEIGHT;
      const [width, height] = this.computeSize();
      this.setSize([Math.max(this.size[0], width), Math.max(this.size[1], height)]);
      delete widget.options.getMinHeight;
      return widget;
    };
  },
});
