// A picture and the order in which its tokens were decoded, on a canvas; and the settings that a PNG carries.

const SMALL = 256; // what is narrower has pixels to be seen
const SHARP = 640; // at least so many pixels across, so that the edges of tokens are sharp
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Picture {
  constructor(title, alt) {
    const make = (tag) => document.createElement(tag);
    Object.assign(this, { title, alt, born: [[-1]], last: 0, before: -1, done: null, bitmap: null });
    this.element = make("figure");
    this.canvas = make("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${alt}, to be painted`);
    this.canvas.width = this.canvas.height = SHARP;
    const caption = make("figcaption");
    this.name = make("strong");
    this.name.textContent = title;
    this.facts = make("span");
    this.link = make("a");
    this.link.textContent = "Download";
    this.link.hidden = true;
    caption.append(this.name, this.link, this.facts);
    this.element.append(this.canvas, caption);
  }

  // As far as it has come: born has the pass of each token, from 0 on, and -1 where there is none yet.
  async progress(blob, born, facts) {
    const bitmap = await createImageBitmap(blob);
    if (this.done) return;
    this.before = this.bitmap ? this.last : -1;
    this.take(bitmap, born);
    this.canvas.setAttribute("aria-label", `${this.alt}, being painted`);
    this.facts.textContent = facts;
    this.draw(this.last + 1, "picture");
  }

  // made: {blob, born, tokens, passes, seconds, seed, ...}
  async finish(made) {
    this.done = made;
    this.take(await createImageBitmap(made.blob), made.born);
    this.canvas.setAttribute("aria-label", this.alt);
    const rate = (this.tokens / made.passes).toFixed(1);
    this.facts.textContent = `${made.passes} passes, ${seconds(made.seconds)}, ${rate} tokens a pass, seed ${made.seed}`;
    this.link.href = URL.createObjectURL(made.blob);
    this.link.download = `zipar-${made.seed}.png`;
    this.link.setAttribute("aria-label", `Download ${this.alt}`);
    this.link.hidden = false;
    this.before = -1;
    this.draw(this.last + 1, "picture");
  }

  take(bitmap, born) {
    this.bitmap?.close();
    Object.assign(this, { bitmap, born, last: Math.max(...born.flat()) });
  }

  get tokens() {
    return this.born.length * this.born[0].length;
  }

  // Tokens that another picture has too, in the same place.
  equal(other) {
    const [own, theirs] = [this.done.tokens.flat(), other.done.tokens.flat()];
    return own.filter((token, i) => token === theirs[i]).length;
  }

  // After so many passes; view is "picture", "order", or "differences" from another picture.
  draw(passes, view, other) {
    const { canvas, bitmap, born } = this;
    if (!bitmap) return;
    const scale = Math.ceil(SHARP / bitmap.width);
    if (canvas.width !== bitmap.width * scale || canvas.height !== bitmap.height * scale) {
      canvas.width = bitmap.width * scale;
      canvas.height = bitmap.height * scale;
    }
    const pen = canvas.getContext("2d"), now = passes - 1;
    pen.imageSmoothingEnabled = bitmap.width >= SMALL;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const running = !this.done || now < this.last;
    born.forEach((row, y) => row.forEach((pass, x) => {
      const edges = [x / row.length * canvas.width, y / born.length * canvas.height,
        (x + 1) / row.length * canvas.width, (y + 1) / born.length * canvas.height].map(Math.round);
      const cell = [edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]];
      const paint = (color) => { pen.fillStyle = color; pen.fillRect(...cell); };
      if (pass < 0 || pass > now) pen.clearRect(...cell);
      else if (view === "order") paint(ramp(pass / (this.last || 1)));
      else if (view === "differences" && other?.done) {
        if (this.done.tokens[y][x] === other.done.tokens[y]?.[x]) paint("rgb(127 127 127 / 0.8)");
      } else if (running && !still.matches && pass > (this.done ? now - 1 : this.before)) paint("rgb(255 214 90 / 0.55)");
    }));
  }
}

export const seconds = (number) => `${number.toFixed(number < 10 ? 2 : 1)} s`;

export function ramp(share) {
  return `hsl(${232 + 165 * share} ${50 + 30 * share}% ${38 + 26 * share}%)`;
}

// The picture of a page that has none yet: the wave in which rows follow each other.
export function blank() {
  const picture = new Picture("", "An empty canvas: rows of tokens, each of which starts before the one above is done");
  const canvas = picture.canvas, side = 16, window = 4, last = (side - 1) * (window + 1);
  canvas.setAttribute("aria-label", picture.alt);
  canvas.width = canvas.height = side * 40;
  const pen = canvas.getContext("2d");
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side && x + y * window < last * 0.62; x++) {
      pen.globalAlpha = 0.16 + 0.5 * ((x + y * window) / last);
      pen.fillStyle = ramp((x + y * window) / last);
      pen.fillRect(x * 40 + 2, y * 40 + 2, 36, 36);
    }
  }
  picture.element.lastChild.replaceChildren(picture.facts);
  picture.facts.textContent = "Say what to paint. Rows of tokens follow each other in a wave.";
  return picture.element;
}

// What the server wrote into a PNG, as an object; null where it wrote nothing.
export async function settingsOf(file) {
  const data = new DataView(await file.arrayBuffer());
  for (let at = 8; at + 8 <= data.byteLength; at += 12 + data.getUint32(at)) {
    const text = new TextDecoder("latin1").decode(new Uint8Array(data.buffer, at + 4, Math.min(4 + data.getUint32(at), data.byteLength - at - 4)));
    if (text.startsWith("tEXtzipar\0")) return JSON.parse(text.slice(10));
  }
  return null;
}
