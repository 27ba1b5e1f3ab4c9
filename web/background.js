// The picture behind the tracks: a file of ComfyUI's input folder, or what the node was given in its last run. The
// node's properties name it, so that it is saved, copied and undone with the node.

import { api } from "../../scripts/api.js";

const PROPERTY = "videocomposer_background"; // such as "folder/name.png [input]"

/** How a file that ComfyUI keeps is named in one text, as stock nodes do. */
export function nameOf({ filename, subfolder, type }) {
  return `${subfolder ? `${subfolder}/` : ""}${filename} [${type}]`;
}

/** The parameters of `/view` for such a name; null where it is none. */
export function fileOf(name) {
  const [, subfolder = "", filename, type] = /^(?:(.*)\/)?([^/]+) \[(\w+)\]$/.exec(name) ?? [];
  return filename ? { filename, subfolder, type } : null;
}

/** Puts a file into ComfyUI's input folder, and returns its name there. */
export async function upload(file) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const { name, subfolder, type } = await answer.json();
  return nameOf({ filename: name, subfolder, type: type ?? "input" });
}

export class Background {
  picture = null; // an ImageBitmap
  problem = ""; // the name of a text that says why there is none
  shown = ""; // the name of the file that picture and problem belong to

  constructor(node) {
    this.node = node;
  }

  get name() {
    return this.node.properties[PROPERTY] ?? "";
  }

  set name(name) {
    if (name) this.node.properties[PROPERTY] = name;
    else delete this.node.properties[PROPERTY];
  }

  get size() {
    return this.picture && [this.picture.width, this.picture.height];
  }

  /** Shows the file of a name, or none. Returns whether it is what is to be shown then: a later call wins. */
  async show(name = this.name) {
    if (name === this.shown && (this.picture || !name)) return true;
    this.shown = name;
    const [picture, problem] = name ? await load(name) : [null, ""];
    if (this.shown !== name) {
      picture?.close();
      return false;
    }
    this.picture?.close();
    Object.assign(this, { picture, problem });
    return true;
  }
}

async function load(name) {
  const file = fileOf(name);
  const answer = file && (await api.fetchApi(`/view?${new URLSearchParams(file)}`).catch(() => null));
  if (!answer?.ok) return [null, file?.type === "temp" ? "forgotten" : "missing"];
  return createImageBitmap(await answer.blob()).then(
    (picture) => [picture, ""],
    () => [null, "unreadablePicture"],
  );
}
