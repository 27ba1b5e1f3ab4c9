// Condition nodes show what the network sees (nodes/host/pictures.py). The page's own widget for animated images has only
// the height of a line of text: here it gets more height, once, which the user may reduce again.

import { app } from "../../scripts/app.js";

const ANIMATION = "$$comfy_animation_preview"; // the page's widget for animated images
const CATEGORY = "VideoComposer";
const HEIGHT = 220;

app.registerExtension({
  name: "VideoComposer.seen",
  nodeCreated(node) {
    if (!node.constructor.nodeData?.category?.startsWith(CATEGORY)) return;
    const add = node.addDOMWidget;
    node.addDOMWidget = function (name, ...rest) {
      const widget = add.call(this, name, ...rest);
      if (name !== ANIMATION) return widget;
      widget.options.getMinHeight = () => HEIGHT;
      const [width, height] = this.computeSize();
      this.setSize([Math.max(this.size[0], width), Math.max(this.size[1], height)]);
      delete widget.options.getMinHeight;
      return widget;
    };
  },
});
