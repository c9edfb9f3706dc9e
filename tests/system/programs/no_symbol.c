/* A shared object that is no module. */
__attribute__((visibility("default"))) int troupe_nothing_here(void) {
  return 0;
}
