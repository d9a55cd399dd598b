/** Keeps the page and the manifest for visits without network. The model's files the player keeps itself. */
const CACHE = "shaderfusion-page";
const isModels = (path) => /^(programs|weights)\/|^(schedules|tokenizer)\w*\.json$/.test(path);
const scope = self.registration.scope;

self.addEventListener("install", (event) => {
  const keep = async () => {
    const { files } = await (await fetch("manifest.json", { cache: "no-cache" })).json();
    const paths = files.map(({ path }) => path).filter((path) => !isModels(path));
    const cache = await caches.open(CACHE);
    await cache.addAll(["./", "manifest.json", ...paths].map((path) => new Request(path, { cache: "no-cache" })));
    await self.skipWaiting();
  };
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

/** From the network as long as there is one, so that a new export is seen at once; else what was kept. */
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(scope) || isModels(request.url.slice(scope.length))) return;
  const answer = async () => {
    const cache = await caches.open(CACHE);
    try {
      const response = await fetch(request, { cache: "no-cache" });
      if (response.ok) await cache.put(request, response.clone());
      return response;
    } catch (error) {
      const kept = await cache.match(request, { ignoreSearch: true, ignoreVary: true });
      if (kept) return kept;
      throw error;
    }
  };
  event.respondWith(answer());
});
