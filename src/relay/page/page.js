"use strict";
// The server sends each part of the page that has changed, by its id, as it renders it.
const source = new EventSource(`${location.pathname.replace(/\/$/, "")}/events${location.search}`);
source.addEventListener("parts", (event) => {
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    const part = document.getElementById(id);
    if (!part) continue;
    const open = [...part.querySelectorAll("details[open]")].map((it) => it.id);
    part.innerHTML = html;
    for (const details of part.querySelectorAll("details")) details.open = open.includes(details.id);
  }
});
// Browsers give no clipboard to pages that came without TLS.
const copy = document.getElementById("copy");
if (navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById("address").textContent);
    copy.textContent = "Copied";
  });
}
const tell = (text, live) => {
  const word = document.getElementById("connection");
  word.textContent = text;
  word.classList.toggle("live", live);
};
source.addEventListener("open", () => tell("live", true));
source.addEventListener("error", () => tell("not live: the connection was lost", false));
