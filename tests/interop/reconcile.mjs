// A reconciliation by nostr-tools.
import "./browser.mjs";
import { nip77 } from "nostr-tools";
import { Relay } from "nostr-tools/relay";

const { NegentropyStorageVector, NegentropySync } = nip77;

/** Reconciles and returns what was found, and the verb and text of each of the relay's answers. */
export async function reconcile(url, events, filter = {}) {
  const storage = new NegentropyStorageVector();
  for (const event of events) storage.insert(event.created_at, event.id);
  storage.seal();
  const relay = await Relay.connect(url);
  const found = { have: [], need: [], answers: [] };
  try {
    await new Promise((resolve) => {
      const sync = new NegentropySync(relay, storage, filter, {
        onhave: (id) => found.have.push(id),
        onneed: (id) => found.need.push(id),
        onclose: resolve,
      });
      // A refusal and a success look alike to onclose: the answers tell them apart.
      const take = sync.subscription.oncustom;
      sync.subscription.oncustom = (message) => {
        found.answers.push([message[0], ...message.slice(2)]);
        take(message);
      };
      sync.start();
    });
  } finally {
    relay.close();
  }
  found.have.sort();
  found.need.sort();
  return found;
}
