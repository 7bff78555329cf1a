// Sets the chosen theme before the first paint; no module, so that it runs before the style sheet is applied.
(() => {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
