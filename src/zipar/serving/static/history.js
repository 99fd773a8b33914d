// What was painted, kept in the browser: entries {id, settings, pictures}, the newest MOST of them.

export const MOST = 40;

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("zipar", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("entries", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});
database.catch(() => {}); // some browsers keep nothing in private windows: whoever asks is told

async function entries(mode, work) {
  const store = (await database).transaction("entries", mode).objectStore("entries");
  return new Promise((resolve, reject) => {
    const asked = work(store);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

export const all = async () => (await entries("readonly", (store) => store.getAll())).reverse();
export const remove = (id) => entries("readwrite", (store) => store.delete(id));
export const clear = () => entries("readwrite", (store) => store.clear());

export async function add(entry) {
  await entries("readwrite", (store) => store.add(entry));
  for (const { id } of (await all()).slice(MOST)) await remove(id);
}
