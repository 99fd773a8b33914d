// A picture or clip and the order in which its tokens were decoded, on a canvas; frames of a clip below it as well.

import { framesOf } from "./png.js";

const SMALL = 256; // what is narrower has pixels to be seen
const SHARP = 640; // at least so many pixels across, so that the edges of tokens are sharp
const ACROSS = 8; // frames in a row
export const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Picture {
  // fps: frames a second of a clip; of a picture there are none.
  constructor(title, alt, fps) {
    const make = (tag) => document.createElement(tag);
    Object.assign(this, { title, alt, fps, born: [[[-1]]], last: 0, before: -1, done: null, frames: [], frame: 0 });
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
    if (!fps) return;
    this.strip = make("canvas");
    this.strip.className = "strip";
    this.strip.setAttribute("aria-hidden", true);
    this.canvas.after(this.strip);
  }

  // As far as it has come: born has the pass of each token, from 0 on, and -1 where there is none yet.
  async progress(blob, born, facts) {
    const frames = await framesOf(blob, framed(born).length);
    if (this.done) return;
    this.before = this.frames.length ? this.last : -1;
    this.take(frames, born);
    this.canvas.setAttribute("aria-label", `${this.alt}, being painted`);
    this.facts.textContent = facts;
    this.draw(this.last + 1, "picture");
  }

  // made: {blob, born, tokens, passes, seconds, seed, ...}
  async finish(made) {
    this.done = made;
    this.take(await framesOf(made.blob, framed(made.born).length), made.born);
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

  take(frames, born) {
    this.frames.forEach((each) => each.close());
    Object.assign(this, { frames, born: framed(born), last: latest(born) });
  }

  get tokens() {
    return this.born.flat(2).length;
  }

  // Tokens that another picture has too, in the same place.
  equal(other) {
    const [own, theirs] = [this.done.tokens.flat(2), other.done.tokens.flat(2)];
    return own.filter((token, i) => token === theirs[i]).length;
  }

  // After so many passes; view is "picture", "order", or "differences" from another picture.
  draw(passes, view, other) {
    Object.assign(this, { passes, view, other });
    if (!this.frames.length) return;
    const { width, height } = this.frames[0], scale = Math.ceil(SHARP / width);
    const pen = cleared(this.canvas, width * scale, height * scale);
    this.paint(pen, this.frame, 0, 0, width * scale, height * scale);
    if (this.fps) this.roll(width, height);
  }

  // A clip goes on to the next of its frames that have begun by the pass that is shown.
  play(tick) {
    if (!this.frames.length) return;
    this.frame = tick % this.born.filter((frame) => frame.flat().some((pass) => pass >= 0 && pass < this.passes)).length;
    this.draw(this.passes, this.view, this.other);
  }

  // All frames of a clip side by side.
  roll(width, height) {
    const scale = Math.ceil(SHARP / ACROSS / width), gap = Math.ceil(width * scale / 16);
    const across = width * scale + gap, down = height * scale + gap, count = this.frames.length;
    const pen = cleared(this.strip, Math.min(count, ACROSS) * across + gap, Math.ceil(count / ACROSS) * down + gap);
    for (let i = 0; i < count; i++) {
      const x = i % ACROSS * across + gap, y = Math.floor(i / ACROSS) * down + gap;
      this.paint(pen, i, x, y, width * scale, height * scale);
      pen.globalCompositeOperation = "destination-over"; // behind it, where tokens are to come
      pen.fillStyle = "rgb(127 127 127 / 0.2)";
      pen.fillRect(x, y, width * scale, height * scale);
      pen.globalCompositeOperation = "source-over";
      if (i !== this.frame) continue;
      [pen.strokeStyle, pen.lineWidth] = [getComputedStyle(this.strip).color, gap / 2];
      pen.strokeRect(x - gap / 4, y - gap / 4, width * scale + gap / 2, height * scale + gap / 2);
    }
  }

  // A frame, at a place.
  paint(pen, frame, left, top, width, height) {
    const now = this.passes - 1, running = !this.done || now < this.last, born = this.born[frame];
    const theirs = this.view === "differences" ? framed(this.other?.done?.tokens ?? [])[frame] : null;
    pen.imageSmoothingEnabled = this.frames[0].width >= SMALL;
    pen.drawImage(this.frames[frame], left, top, width, height);
    born.forEach((row, y) => row.forEach((pass, x) => {
      const edges = [left + x / row.length * width, top + y / born.length * height,
        left + (x + 1) / row.length * width, top + (y + 1) / born.length * height].map(Math.round);
      const cell = [edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]];
      const fill = (color) => { pen.fillStyle = color; pen.fillRect(...cell); };
      if (pass < 0 || pass > now) pen.clearRect(...cell);
      else if (this.view === "order") fill(ramp(pass / (this.last || 1)));
      else if (theirs) {
        if (framed(this.done.tokens)[frame][y][x] === theirs[y]?.[x]) fill("rgb(127 127 127 / 0.8)");
      } else if (running && !still.matches && pass > (this.done ? now - 1 : this.before)) fill("rgb(255 214 90 / 0.55)");
    }));
  }
}

// Numbers of tokens by frame; a picture is one.
const framed = (rows) => Array.isArray(rows[0]?.[0]) ? rows : [rows];

export const latest = (born) => Math.max(...born.flat(2));

// The pen of a canvas, which is blank and of a size then.
function cleared(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  return pen;
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
