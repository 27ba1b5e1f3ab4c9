// What our widgets with HTML of their own have in common.

import { app } from "../../scripts/app.js";

const FRAMES = 60; // for which a node looks for what is shown in its element's place
const removed = new Map(); // the number of a node and the name of its widget -> the element that was removed with it

/**
 * Undoing replaces a node by another of its number, and newer pages may go on showing the element of the one that is
 * gone: its place is taken.
 */
function takePlace(key, element) {
  let frames = FRAMES;
  const look = () => {
    const old = removed.get(key)?.deref();
    if (!old || old === element || element.isConnected || !frames--) return removed.delete(key);
    if (old.isConnected) old.replaceWith(element);
    requestAnimationFrame(look);
  };
  look();
}

/** Adds a widget that shows an element and that no workflow saves. */
export function addElement(node, name, element, options) {
  const widget = node.addDOMWidget(name, "videocomposer", element, {
    serialize: false,
    hideInPanel: true, // the page's side panel has nothing to show for it but an empty row
    ...options,
  });
  widget.serialize = false;
  // Pages whose panel knows nothing of `hideInPanel` write its width here, which would shrink the widget on its node.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  chain(node, "onAdded", () => takePlace(`${node.id} ${name}`, element));
  chain(node, "onRemoved", () => removed.set(`${node.id} ${name}`, new WeakRef(element)));
  return widget;
}

/** Makes an undo step of a change that no release of the mouse follows, which is when the page makes its own. */
export function asOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    return change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** Has a node or widget do more whenever it does what the method of a name does, and with the same arguments. */
export function chain(owner, name, action) {
  const before = owner[name];
  owner[name] = function (...args) {
    const result = before?.apply(owner, args);
    action(...args);
    return result;
  };
}
