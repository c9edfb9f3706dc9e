/* A shared object that is no module. */
int troupe_test_no_symbol(void);
int troupe_test_no_symbol(void) {
  return 1;
}
