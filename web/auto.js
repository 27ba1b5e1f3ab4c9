// Where a number's value leaves it to the node, `auto` is shown in its place; what is stored and typed stays the number.
// Which numbers these are, the nodes say (AUTOMATIC in nodes/inputs.py).

import { app } from "../../scripts/app.js";

const OPTION = "videocomposer_auto";
const TEXT = "auto";
const MARK = "videocomposerAuto"; // as data-videocomposer-auto around an input of the nodes of HTML

const automatic = new Map(); // class of node -> {name of a widget: its automatic value}

/** The automatic values that a node's definition gives, by the names of its inputs. */
export function automaticValues({ required, optional } = {}) {
  const inputs = Object.entries({ ...required, ...optional });
  return Object.fromEntries(inputs.map(([name, [, options]]) => [name, options?.[OPTION]]).filter(([, value]) => value !== undefined));
}

/** Has a widget that the canvas draws show its automatic value as `auto`. */
function show(widget, value) {
  const drawn = Object.getPrototypeOf(widget);
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      const text = Reflect.get(drawn, "_displayValue", widget); // empty where the input is connected
      return text && widget.value === value ? TEXT : text;
    },
  });
}

// The nodes of HTML have no such hook. The page keeps an input's value in its `aria-valuenow`: a style sheet compares
// that with our mark around the input, and writes over the number while nobody is typing.
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
