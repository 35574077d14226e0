// Keys press the buttons of the page, only while its checkbox is on and nobody is typing.
document.addEventListener("keydown", (event) => {
  if (!window.reviewKeys || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
  const names = { a: "accept", r: "reject", u: "undo", ArrowRight: "next", ArrowLeft: "previous" };
  const name = names[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const button = name && document.getElementById(name);
  if (button) { event.preventDefault(); button.click(); }
});
