// Some numbers have a value that means automatic: the node then chooses. Their widgets show `auto` instead of this value;
// the stored and the typed value stay numbers. The nodes declare these values (AUTOMATIC in nodes/inputs.py).

import { app } from "../../scripts/app.js";

const OPTION = "videocomposer_auto";
const TEXT = "auto";
const MARK = "videocomposerAuto"; // data-videocomposer-auto on the element around an input of an HTML node

const automatic = new Map(); // node class -> {widget name: its automatic value}

/** Returns the automatic values in a node's definition, by input name. */
export function automaticValues({ required, optional } = {}) {
  const inputs = Object.entries({ ...required, ...optional });
  return Object.fromEntries(inputs.map(([name, [, options]]) => [name, options?.[OPTION]]).filter(([, value]) => value !== undefined));
}

/** Makes a widget on the canvas show its automatic value as `auto`. */
function show(widget, value) {
  const prototype = Object.getPrototypeOf(widget);
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      const text = Reflect.get(prototype, "_displayValue", widget); // empty if the input is connected
      return text && widget.value === value ? TEXT : text;
    },
  });
}

// HTML nodes have no such hook. The page stores an input's value in its `aria-valuenow`: a style sheet compares it with
// our mark around the input, and draws over the number while nobody is typing.
function paint(values) {
  const sheet = document.createElement("style");
  sheet.textContent = values
    .map((value) => {
      const [mark, input] = [`[data-videocomposer-auto="${value}"]`, `input[aria-valuenow="${value}"]:not(:focus)`];
      return `
        ${mark} > ${input} { color: transparent }
        ${mark}:has(> ${input})::after { content: "${TEXT}"; position: absolute; inset: 0; padding: 0.25rem; pointer-events: none }
      `;
    })
    .join("");
  document.head.append(sheet);
}

function mark(input) {
  const id = input.closest("[data-node-id]")?.dataset.nodeId;
  const node = id && (app.canvas.graph ?? app.graph).getNodeById(id);
  const value = automatic.get(node?.comfyClass)?.[input.closest("[aria-label]")?.ariaLabel];
  if (value !== undefined) input.parentElement.dataset[MARK] = value;
}

function watch() {
  const observer = new MutationObserver((changes) => {
    for (const { addedNodes } of changes) {
      for (const added of addedNodes) added.querySelectorAll?.("input[aria-valuenow]").forEach(mark);
    }
  });
  observer.observe(document.body, { childList: true, subtree: true });
}

app.registerExtension({
  name: "videocomposer.auto",
  beforeRegisterNodeDef(_, { name, input }) {
    const values = automaticValues(input);
    if (Object.keys(values).length) automatic.set(name, values);
  },
  setup() {
    paint([...new Set([...automatic.values()].flatMap(Object.values))]);
    watch();
  },
  nodeCreated(node) {
    const values = automatic.get(node.comfyClass) ?? {};
    for (const widget of node.widgets ?? []) if (widget.name in values) show(widget, values[widget.name]);
  },
});
