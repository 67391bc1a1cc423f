// The relay's page as people see it, in the real Chromium.
import "./browser.mjs";
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import axe from "axe-core";
import { chromium } from "playwright-core";
import { finalizeEvent } from "nostr-tools/pure";
import { Relay } from "nostr-tools/relay";
import { withRelay } from "./relay.mjs";

const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
const missing = existsSync(executablePath) ? false : `LEFT OUT: there is no ${executablePath}`;
// Where pictures are kept, for those who want to look; none are without it.
const pictures = process.env.NEGSYNC_SCREENSHOTS;
const hang = { timeout: 80_000, skip: missing };
const DAY_S = 86_400;
const now = Math.floor(Date.now() / 1000);
const keys = [1, 2, 3].map((number) => new Uint8Array(32).fill(number));

let browser;
before(async () => {
  if (missing) return;
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
  args.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
  // A new empty profile each time, which goes with the browser.
  browser = await chromium.launch({ executablePath, args });
});
after(async () => await browser?.close());

let made = 0;
/** A signed event, `daysAgo` days old. */
function event(kind, daysAgo, { author = 0, tags = [] } = {}) {
  made += 1;
  const template = { kind, created_at: now - 600 - daysAgo * DAY_S, tags, content: `${made}` };
  return finalizeEvent(template, keys[author]);
}
const events = (count, kind, daysAgo) => Array.from({ length: count }, () => event(kind, daysAgo));

/** The part of relay.toml that shows the page, to an operator on this machine or to nobody. */
const pageConfig = ({ operator = true, peers = [] } = {}) => `
[relay]
name = "relay.example.com"
description = "Kept equal <by> negsync"
[page]
enabled = true
operator = [${operator ? '"127.0.0.1"' : ""}]
look_interval_s = 1
${peers.map(({ url, ...keys }) => `[[peer]]\nurl = "${url}"\ninterval_s = 1\n${
  Object.entries(keys).map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join("\n")}`).join("\n")}
`;

const httpOf = (url) => url.replace("ws:", "http:") + "/";

/** Opens the page, and fails on whatever a console would complain about or another origin. */
async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(`${error}`));
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol !== "data:" && origin !== new URL(httpOf(url)).origin) complaints.push(request.url());
  });
  await page.goto(httpOf(url));
  const close = async (picture) => {
    if (pictures && picture) {
      await mkdir(pictures, { recursive: true });
      await page.screenshot({ path: join(pictures, `${picture}.png`), fullPage: true });
    }
    await context.close();
    assert.deepEqual(complaints, []);
  };
  return { page, close };
}

/** Looks until `check` passes. */
async function until(check) {
  const end = Date.now() + 30_000;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

const number = (text) => Number(text.replaceAll(",", ""));

/** The number of a tile, which may have smaller words below it. */
async function tile(page, name) {
  const text = await page.locator("#now div", { hasText: name }).locator("dd").innerText();
  return number(text.split("\n")[0]);
}

/** What the page's table of kinds says. */
async function kindsShown(page) {
  const rows = await page.locator("#kinds tbody tr").allInnerTexts();
  return new Map(rows.map((row) => {
    const cells = row.split("\t");
    return [parseInt(cells[0]), number(cells.at(-1))];
  }));
}

/** What the store says of the same. */
async function kindsStored(relay, kinds) {
  const counts = new Map();
  for (const kind of kinds) {
    const count = await relay.count([{ kinds: [kind] }], {});
    if (count > 0) counts.set(kind, count);
  }
  return counts;
}

const sorted = (counts) => [...counts].sort(([one], [other]) => one - other);

async function sameAsStore(page, relay, kinds) {
  const stored = await kindsStored(relay, kinds);
  assert.deepEqual(sorted(await kindsShown(page)), sorted(stored));
  const total = await relay.count([{}], {});
  assert.equal(await tile(page, "Events stored"), total);
  assert.equal(await tile(page, "Kinds stored"), stored.size);
}

test("its numbers are the store's after writes, deletions and syncs", hang, async () => {
  const kinds = [0, 1, 5, 6, 7, 1111];
  const theirs = [...events(40, 1, 2), ...events(30, 1111, 9)];
  await withRelay(theirs, async (peer) => {
    const config = pageConfig({ peers: [{ url: peer, live: true }] });
    await withRelay(events(25, 1, 1), async (url) => {
      const { page, close } = await open(url);
      const relay = await Relay.connect(url);
      try {
        // Synced by the schedule, and shown without a reload.
        await until(async () => assert.equal(await relay.count([{}], {}), 95));
        await until(() => sameAsStore(page, relay, kinds));
        const gone = events(10, 7, 3);
        for (const it of [...gone, ...events(15, 6, 0), event(0, 5), event(0, 4)]) {
          await relay.publish(it);
        }
        await until(() => sameAsStore(page, relay, kinds));
        const tags = gone.map(({ id }) => ["e", id]);
        await relay.publish(event(5, 0, { tags }));
        await until(() => sameAsStore(page, relay, kinds));
        assert.equal((await kindsShown(page)).get(0), 1, "a profile replaces the one before it");
        assert.equal((await kindsShown(page)).has(7), false, "deleted");
        assert.equal(await tile(page, "Events stored"), 95 + 15 + 1 + 1);
        // The same when it comes whole.
        const without = await open(url, { javaScriptEnabled: false });
        await sameAsStore(without.page, relay, kinds);
        await without.close();
        assert.equal(await page.locator("#connection").innerText(), "live");
        await until(async () => {
          const card = await page.locator("#peers .card").innerText();
          assert.ok(card.includes("in step") && /Last converged\s+now/.test(card), card);
        });
      } finally {
        relay.close();
      }
      await close();
    }, config);
  });
});

/** Two relays that a sync in one direction leaves different, and where they differ. */
async function withDifference(work, operator = true) {
  const shared = [...events(60, 1, 1), ...events(50, 7, 6), ...events(45, 1, 12)];
  const ours = events(4, 1, 6);
  await withRelay([...shared, ...events(9, 1, 12)], async (peer) => {
    const config = pageConfig({ operator, peers: [{ url: peer, direction: "down" }] });
    await withRelay([...shared, ...ours], (url) => work(url, peer), config);
  });
}

const date = (daysAgo) => new Date((now - 600 - daysAgo * DAY_S) * 1000).toISOString().slice(0, 10);

test("it shows which peer lacks what, since when and of which day", hang, async () => {
  await withDifference(async (url, peer) => {
    const { page, close } = await open(url);
    const card = page.locator("#peers .card");
    await until(async () => {
      const text = await card.innerText();
      for (const words of [peer, "▲ differs", "Differs since"]) assert.ok(text.includes(words), text);
      assert.match(text, /It lacks\s+4\s/);
      assert.match(text, /This relay lacks\s+0\s/);
      assert.match(text, /Last sync\s+\d+ round trips?\s+.* up, .* down/);
    });
    const drawing = page.locator("#days svg.differences");
    await until(async () => assert.equal(await drawing.locator("rect.have").count(), 1));
    assert.equal(await drawing.locator("rect.need").count(), 0);
    const words = await drawing.locator("title").allTextContents();
    assert.ok(words.includes(`${date(6)}: 4 only here, 0 only there`), words.join("\n"));
    const legend = await page.locator("#days figcaption").allInnerTexts();
    assert.ok(legend[0].includes("held here") && legend[1].includes("only here: 4"), `${legend}`);
    // Updates may replace the drawing between two looks at it.
    await until(async () => {
      const box = await drawing.locator("rect.have").boundingBox();
      assert.ok(box?.width >= 2 && box?.height >= 20, JSON.stringify(box));
    });
    await page.locator("#days summary").click();
    await until(async () => {
      const row = await page.locator("#days tbody tr").innerText();
      assert.deepEqual(row.split("\t"), [date(6), "4", "0"]);
    });
    // What someone has opened stays open when the numbers come anew.
    const seen = await page.locator("#as-of").innerText();
    await until(async () => assert.notEqual(await page.locator("#as-of").innerText(), seen));
    assert.ok(await page.locator("#days details").evaluate((it) => it.open));
    await close("differs");
  });
});

test("only the operator is shown the peers' addresses", hang, async () => {
  await withDifference(async (url, peer) => {
    const { page, close } = await open(url);
    await until(async () => {
      assert.match(await page.locator("#peers .card").innerText(), /^Peer 1/);
      assert.equal(await page.locator("#days rect.have").count(), 1);
    });
    const html = await page.content();
    const host = new URL(peer).host;
    assert.ok(!html.includes(host), "the page");
    const response = await fetch(`${httpOf(url)}events`);
    const { value } = await response.body.getReader().read();
    assert.ok(!Buffer.from(value).toString().includes(host), "its updates");
    await close();
  }, false);
});

/** The contrast of an element's words with what is behind them (WCAG 2, relative luminance). */
function contrast(element) {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [red, green, blue] = channels(color).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  let behind = element;
  const opaque = (it) => (channels(getComputedStyle(it).backgroundColor)[3] ?? 1) > 0;
  while (behind.parentElement && !opaque(behind)) behind = behind.parentElement;
  const style = getComputedStyle(element);
  const color = element.closest("svg") ? style.fill : style.color;
  const pair = [color, getComputedStyle(behind).backgroundColor].map(luminance);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}

test("it is readable dark and light, on a phone and without JavaScript", hang, async () => {
  await withDifference(async (url) => {
    const first = await open(url);
    await first.page.locator("#days rect.have").waitFor();
    await first.close();
    const phone = { width: 360, height: 740 };
    const backgrounds = new Set();
    for (const [name, options] of [
      ["light", { colorScheme: "light" }],
      ["dark", { colorScheme: "dark" }],
      ["phone-light", { colorScheme: "light", viewport: phone }],
      ["phone-dark", { colorScheme: "dark", viewport: phone, javaScriptEnabled: false }],
    ]) {
      const { page, close } = await open(url, options);
      const heading = page.getByRole("heading", { name: "relay.example.com", level: 1 });
      assert.ok(await heading.isVisible(), name);
      assert.ok(await page.getByText("Kept equal <by> negsync").isVisible(), name);
      for (const part of ["#now", "#peers", "#days", "#kinds"]) {
        assert.ok(await page.locator(part).isVisible(), `${name}: ${part}`);
      }
      const wide = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(wide[0] <= wide[1], `${name}: ${wide[0]} of ${wide[1]} pixels`);
      for (const [selector, least] of [
        ["h1", 4.5], [".state", 4.5], ["dt", 4.5], ["dd", 4.5], [".mark", 4.5], ["figcaption", 4.5],
        [".axis", 4.5], ["footer", 4.5], ["rect.held", 3], ["rect.have", 3],
      ]) {
        // In one go: an update may replace the element at any moment.
        const element = `document.querySelector(${JSON.stringify(selector)})`;
        const found = await page.evaluate(`(${contrast})(${element})`);
        assert.ok(found >= least, `${name}: ${selector} has a contrast of ${found.toFixed(2)}`);
      }
      backgrounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
      await close(name);
    }
    assert.equal(backgrounds.size, 2);
  });
});

const REFUSES = `[write_policy]
command = '''while IFS= read -r line; do id=\${line#*'"id":"'}; id=\${id%%'"'*}
echo "{\\"id\\":\\"$id\\",\\"action\\":\\"reject\\",\\"msg\\":\\"blocked: no\\"}"; done'''
`;

/** The relay with a peer that stands so, and the word and the class by which the page says it. */
const PEERS = [
  ["no peer", null, null],
  ["an equal one", { peerHas: 0 }, ["● equal", "good"]],
  ["a differing one", { peerHas: 9, keys: { direction: "up" } }, ["▲ differs", "differs"]],
  ["a refusing one", { lacks: 4, config: REFUSES }, ["▲ refuses writes", "differs"]],
  ["a dead one", { dead: true }, ["✕ not reached", "bad"]],
];

/** Runs `work` with the URL of a relay whose peer is as `peer` says. */
async function withPeer(peer, work) {
  const shared = [...events(20, 1, 1), ...events(12, 7, 40), ...events(3, 30023, 400)];
  const ours = [...shared, ...events(peer?.lacks ?? 0, 1, 3)];
  if (!peer) return await withRelay(ours, work, pageConfig());
  // Nothing listens there.
  if (peer.dead) return await withRelay(ours, work, pageConfig({ peers: [{ url: "ws://127.0.0.1:1" }] }));
  await withRelay([...shared, ...events(peer.peerHas ?? 0, 1, 5)], async (url) => {
    const config = pageConfig({ peers: [{ url, ...peer.keys }] });
    await withRelay(ours, work, config);
  }, peer.config ?? "");
}

for (const [name, peer, said] of PEERS) {
  test(`with ${name} it is right and accessible at each width, dark and light`, hang, async () => {
    await withPeer(peer, async (url) => {
      const { page, close } = await open(url);
      if (said) {
        await until(async () => assert.equal(await page.locator("#peers .mark").innerText(), said[0]));
        assert.ok(await page.locator("#peers .mark").evaluate((it, name) => it.classList.contains(name), said[1]));
      }
      const good = said?.[1] === "good" ? 1 : 0;
      assert.equal(await page.locator("#peers .good").count(), good, "green is for equal peers alone");
      await page.evaluate(axe.source);
      for (const width of [320, 768, 1280]) {
        for (const colorScheme of ["dark", "light"]) {
          await page.setViewportSize({ width, height: 800 });
          await page.emulateMedia({ colorScheme });
          const at = `${name}, ${width} px, ${colorScheme}`;
          const { violations } = await page.evaluate(() => globalThis.axe.run());
          const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
          assert.deepEqual(found, [], at);
          const cut = await page.evaluate(() => [...document.querySelectorAll("body, .tiles > div, .card")]
            .filter((it) => it.scrollWidth > it.clientWidth + 1).map((it) => it.outerHTML.slice(0, 200)));
          assert.deepEqual(cut, [], at);
        }
      }
      await close();
    });
  });
}

test("a choice of 90 days, a year and everything is kept by its updates", hang, async () => {
  await withRelay([...events(5, 1, 1), ...events(4, 1, 200), ...events(3, 1, 900)], async (url) => {
    const { page, close } = await open(url, { permissions: ["clipboard-write"] });
    const caption = page.locator("#days figcaption").first();
    for (const [link, words] of [
      ["90 days", "5 of 12 events"], ["a year", "9 of 12 events"], ["everything", "all 12 events"],
    ]) {
      await page.getByRole("link", { name: link }).click();
      await until(async () => assert.ok((await caption.innerText()).includes(words), words));
      assert.equal(await page.locator(".spans [aria-current]").innerText(), link);
      const seen = await page.locator("#as-of").innerText();
      await until(async () => assert.notEqual(await page.locator("#as-of").innerText(), seen));
      assert.ok((await caption.innerText()).includes(words), `${words} after an update`);
    }
    await page.getByRole("button", { name: "Copy" }).click();
    await until(async () => assert.equal(await page.locator("#copy").innerText(), "Copied"));
    await close();
  }, pageConfig());
});

test("a picture of it", hang, async () => {
  const shared = Array.from({ length: 70 }, (_, day) => events(4 + (day * 7) % 9, [1, 1, 7, 6, 1111][day % 5], day)).flat();
  await withRelay([...shared, ...events(23, 1, 12), ...events(9, 7, 31)], async (differing) => {
    await withRelay(shared, async (equal) => {
      const peers = [{ url: equal }, { url: differing, direction: "up" }];
      const config = pageConfig({ peers }).replace("Kept equal <by> negsync", "A relay that stays in sync");
      await withRelay(shared, async (url) => {
        const { page, close } = await open(url, { viewport: { width: 1000, height: 1180 } });
        await until(async () => assert.deepEqual(
          await page.locator("#peers .mark").allInnerTexts(), ["● equal", "▲ differs"]));
        await until(async () => assert.ok(await page.locator("#days svg.differences").count() >= 1));
        if (pictures) {
          await mkdir(pictures, { recursive: true });
          await page.screenshot({ path: join(pictures, "page.png") });
        }
        await close();
      }, config);
    });
  });
});
