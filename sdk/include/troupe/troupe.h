// Everything a program needs: #include <troupe/troupe.h>.
#pragma once

#include "troupe/coroutine.h"
#include "troupe/module.h"
#include "troupe/session.h"
