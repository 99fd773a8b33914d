// What a PNG holds besides a picture: the settings that the server wrote, and the frames of a clip.

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);

const text = (bytes) => new TextDecoder("latin1").decode(bytes);
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// The chunks of a file, each its kind and what it holds.
async function chunksOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), chunks = [];
  for (let at = 8; at + 8 <= bytes.length; at += 12 + view(bytes).getUint32(at)) {
    chunks.push(bytes.subarray(at + 4, at + 8 + view(bytes).getUint32(at)));
  }
  return chunks;
}

// What the server wrote into it, as an object; null where it wrote nothing.
export async function settingsOf(file) {
  const written = (await chunksOf(file)).map(text).find((each) => each.startsWith("tEXtzipar\0"));
  return written ? JSON.parse(written.slice(10)) : null;
}

// So many frames of it, as bitmaps. Browsers play animations, but not all hand out their frames; so what changes from
// one to the next is made a PNG of its own. What changes nothing the server leaves out, and the one before lasts longer.
export async function framesOf(file, count) {
  const chunks = await chunksOf(file), changes = [];
  for (const chunk of chunks) {
    const kind = text(chunk.subarray(0, 4)), held = view(chunk);
    if (kind === "fcTL") {
      const [width, height, x, y] = [8, 12, 16, 20].map((at) => held.getUint32(at));
      changes.push({ width, height, x, y, lasts: held.getUint16(24) / held.getUint16(26), data: [] });
    } else if (kind === "IDAT") changes.at(-1)?.data.push(chunk.subarray(4));
    else if (kind === "fdAT") changes.at(-1).data.push(chunk.subarray(8));
  }
  if (!changes.length) return Promise.all(Array.from({ length: count }, () => createImageBitmap(file)));
  const { width, height } = changes[0], canvas = Object.assign(document.createElement("canvas"), { width, height });
  const total = changes.reduce((sum, { lasts }) => sum + lasts, 0), frames = [];
  let end = 0;
  for (const change of changes) {
    const bitmap = await createImageBitmap(still(chunks[0], change));
    canvas.getContext("2d").drawImage(bitmap, change.x, change.y);
    bitmap.close();
    end += change.lasts;
    while (frames.length < count && (frames.length + 0.5) / count * total < end) frames.push(await createImageBitmap(canvas));
  }
  return frames;
}

// A PNG of its own; its header is as that of all, but for the size.
function still(header, { width, height, data }) {
  const own = header.slice();
  view(own).setUint32(4, width);
  view(own).setUint32(8, height);
  const [begin, end] = ["IDAT", "IEND"].map((kind) => new TextEncoder().encode(kind));
  return new Blob([SIGNATURE, ...sealed(own), ...sealed(begin, ...data), ...sealed(end)], { type: "image/png" });
}

// A chunk as files hold it: its length before it, its checksum after it.
function sealed(...parts) {
  const number = (value) => { const bytes = new Uint8Array(4); view(bytes).setUint32(0, value); return bytes; };
  let sum = ~0;
  for (const bytes of parts) {
    for (const byte of bytes) {
      sum ^= byte;
      for (let bit = 0; bit < 8; bit++) sum = sum >>> 1 ^ (sum & 1 ? 0xedb88320 : 0);
    }
  }
  return [number(parts.reduce((size, { length }) => size + length, -4)), ...parts, number(~sum)];
}
