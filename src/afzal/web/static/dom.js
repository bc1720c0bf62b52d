// Elements and the dialog for the board and the chat.

export const byId = (id) => document.getElementById(id);

export function element(tag, css = "", text = "") {
  const node = document.createElement(tag);
  if (css) node.className = css;
  if (text) node.textContent = text;
  return node;
}

export function openDialog(title, body) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(body);
  byId("dialog").showModal();
}

// rows: [keys separated by spaces, what they do].
export function keyList(rows) {
  const list = element("dl", "keys");
  for (const [keys, what] of rows) {
    const row = element("div"), term = element("dt");
    term.append(...keys.split(" ").map((key) => element("kbd", "", key)));
    row.append(term, element("dd", "", what));
    list.append(row);
  }
  return list;
}
