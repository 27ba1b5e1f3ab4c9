// Functions that all our HTML widgets share.

import { app } from "../../scripts/app.js";

const FRAMES = 60; // number of frames for which a node looks for an old element in place of its own
const removed = new Map(); // a node's id and its widget's name -> the element that was removed with it

/**
 * Undo replaces a node by another one with the same id. Newer pages may keep showing the element of the removed node:
 * here the new element replaces it.
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

/** Adds a widget that shows an element and is not saved in workflows. */
export function addElement(node, name, element, options) {
  const widget = node.addDOMWidget(name, "videocomposer", element, {
    serialize: false,
    hideInPanel: true, // it would be an empty row in the page's side panel
    ...options,
  });
  widget.serialize = false;
  // Pages without `hideInPanel` write their panel's width here, which would shrink the widget on its node.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  chain(node, "onAdded", () => takePlace(`${node.id} ${name}`, element));
  chain(node, "onRemoved", () => removed.set(`${node.id} ${name}`, new WeakRef(element)));
  return widget;
}

/** Makes an undo step for a change without a mouse release; the page itself makes undo steps only at mouse releases. */
export function asOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    return change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** Runs an action after each call of a node's or widget's method, with the same arguments. */
export function chain(owner, name, action) {
  const before = owner[name];
  owner[name] = function (...args) {
    const result = before?.apply(owner, args);
    action(...args);
    return result;
  };
}
