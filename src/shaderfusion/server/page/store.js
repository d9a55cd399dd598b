/**
 * The pictures of this tab, in IndexedDB: they are too large for sessionStorage, which holds only the tab's name.
 * A reload finds them again; those of tabs that were closed are deleted a day later.
 */

const DAY_MS = 86_400_000;
const TAB = "shaderfusion-tab";

/** A name that nothing else has. */
export const newId = () => crypto.getRandomValues(new Uint32Array(3)).join("-");

/** A request of IndexedDB as a promise. */
const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** Where the browser has no IndexedDB, as in some private windows, pictures live until a reload. */
export const FORGETFUL = { isLasting: false, all: async () => [], add: async () => {}, remove: async () => {} };

/** What keeps pictures: `all()`, `add(picture)`, `remove(ids)`, and `isLasting`, whether a reload finds them. */
export async function openStore() {
  let tab = sessionStorage.getItem(TAB);
  if (!tab) {
    tab = newId();
    sessionStorage.setItem(TAB, tab);
  }
  let database;
  try {
    const opening = indexedDB.open("shaderfusion", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id" });
    database = await settled(opening);
  } catch {
    return FORGETFUL;
  }
  const pictures = (mode) => database.transaction("pictures", mode).objectStore("pictures");
  const remove = async (ids) => {
    const place = pictures("readwrite");
    await Promise.all(ids.map((id) => settled(place.delete(id))));
  };
  return {
    isLasting: true,
    remove,
    add: (picture) => settled(pictures("readwrite").put({ ...picture, tab })),
    async all() {
      const found = await settled(pictures("readonly").getAll());
      await remove(found.filter((each) => each.tab !== tab && each.at < Date.now() - DAY_MS).map(({ id }) => id));
      return found.filter((each) => each.tab === tab).sort((a, b) => a.at - b.at || a.index - b.index);
    },
  };
}
