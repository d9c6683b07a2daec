// The theme before the first paint: not a module, so that nothing is drawn in the wrong one.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("quire-theme");
  } catch {
    // A browser that keeps nothing shows what it prefers.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
