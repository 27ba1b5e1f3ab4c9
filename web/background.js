// The image behind the tracks: a file in ComfyUI's input folder, or the image that the node received in its last run. A
// property of the node stores its name, so it is saved, copied and undone with the node.

import { api } from "../../scripts/api.js";

const PROPERTY = "videocomposer_background"; // for example "folder/name.png [input]"

/** Returns the name of a ComfyUI file in one text, in the form that stock nodes use. */
export function nameOf({ filename, subfolder, type }) {
  return `${subfolder ? `${subfolder}/` : ""}${filename} [${type}]`;
}

/** Returns the parameters of `/view` for such a name; null if it is not one. */
export function fileOf(name) {
  const [, subfolder = "", filename, type] = /^(?:(.*)\/)?([^/]+) \[(\w+)\]$/.exec(name) ?? [];
  return filename ? { filename, subfolder, type } : null;
}

/** Uploads a file to ComfyUI's input folder, and returns its name there. */
export async function upload(file) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const { name, subfolder, type } = await answer.json();
  return nameOf({ filename: name, subfolder, type: type ?? "input" });
}

export class Background {
  image = null; // an ImageBitmap
  problem = ""; // the key of a message that says why there is no image
  shown = ""; // the name of the file that image and problem belong to

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
    return this.image && [this.image.width, this.image.height];
  }

  /** Shows a file, or nothing for an empty name. Returns false if a later call has replaced it meanwhile. */
  async show(name = this.name) {
    if (name === this.shown && (this.image || !name)) return true;
    this.shown = name;
    const [image, problem] = name ? await load(name) : [null, ""];
    if (this.shown !== name) {
      image?.close();
      return false;
    }
    this.image?.close();
    Object.assign(this, { image, problem });
    return true;
  }
}

async function load(name) {
  const file = fileOf(name);
  const answer = file && (await api.fetchApi(`/view?${new URLSearchParams(file)}`).catch(() => null));
  if (!answer?.ok) return [null, file?.type === "temp" ? "forgotten" : "missing"];
  return createImageBitmap(await answer.blob()).then(
    (image) => [image, ""],
    () => [null, "unreadableImage"],
  );
}
